// ---- data: what Python packed, and fast ranges of it

const packed = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// value = q * scale / 32767, q = -32768 where missing
function valuesOf({ scale, q }) {
  const bytes = bytesOf(q);
  const view = new DataView(bytes.buffer);
  const out = new Float32Array(bytes.length / 2);
  for (let i = 0; i < out.length; i++) {
    const raw = view.getInt16(2 * i, true);
    out[i] = raw === -32768 ? NaN : (raw * scale) / 32767;
  }
  return out;
}

// runs [[count, value], ...] to one value a frame
function expandRuns(runs, n) {
  const out = new Uint16Array(n);
  let i = 0;
  for (const [count, value] of runs) out.fill(value, i, (i += count));
  return out;
}

function timesOf(clock, n) {
  const times = new Float64Array(n + 1); // the last entry is the end of the last frame
  const [num, den] = clock.time_base;
  let tick = clock.first ?? 0, i = 0;
  if (n) times[i++] = (tick * num) / den;
  for (const [step, count] of clock.steps) {
    for (let k = 0; k < count; k++) times[i++] = ((tick += step) * num) / den;
  }
  times[n] = (clock.end * num) / den;
  return times;
}

// A channel answers lowest, highest and mean of blocks of frames, so that an hour draws as fast as a minute
class Channel {
  constructor(values) {
    this.values = values;
    this.levels = [{ size: 1, low: values, high: values, mean: values, known: values.map((x) => (Number.isNaN(x) ? 0 : 1)) }];
    while (this.levels.at(-1).low.length > 64) this.levels.push(this.coarser(this.levels.at(-1), 4));
    this.any = values.some((x) => !Number.isNaN(x));
  }

  coarser(fine, factor) {
    const n = Math.ceil(fine.low.length / factor);
    const [low, high, mean, known] = [NaN, NaN, 0, 0].map((x) => new Float32Array(n).fill(x));
    for (let i = 0; i < fine.low.length; i++) {
      if (!fine.known[i]) continue;
      const k = Math.floor(i / factor);
      if (!(low[k] <= fine.low[i])) low[k] = fine.low[i];
      if (!(high[k] >= fine.high[i])) high[k] = fine.high[i];
      mean[k] += fine.mean[i] * fine.known[i];
      known[k] += fine.known[i];
    }
    for (let k = 0; k < n; k++) mean[k] /= known[k];
    return { size: fine.size * factor, low, high, mean, known };
  }

  levelFor(framesPerPixel) {
    let best = this.levels[0];
    for (const level of this.levels) if (level.size <= framesPerPixel) best = level;
    return best;
  }
}

class TraceData {
  constructor(raw) {
    Object.assign(this, { id: raw.id, label: raw.label, source: raw.source, n: raw.n, reasons: raw.reasons });
    this.times = timesOf(raw.clock, raw.n);
    this.channels = {};
    for (const [name, channel] of Object.entries(raw.channels)) this.channels[name] = new Channel(valuesOf(channel));
    this.reason = expandRuns(raw.reason_runs, raw.n);
    this.box = raw.box ? raw.box.map(valuesOf) : null;
    const named = (kind) => raw.spans.filter((s) => s.kind === kind);
    [this.words, this.utterances, this.speech, this.flags] = ["word", "utterance", "speech", "flag"].map(named);
    if (!this.utterances.length && this.words.length) this.utterances = sentencesOf(this.words);
    for (const said of this.utterances) {
      said.words = this.words.filter((w) => w.start_s >= said.start_s - 1e-3 && w.start_s < said.end_s);
    }
    this.start = raw.n ? this.times[0] : 0;
    this.end = this.times[raw.n];
    this.foundRuns = this.runs((i) => (this.box ? (Number.isNaN(this.box[0][i]) ? 0 : 1) : this.reason[i] ? 0 : 1));
    const unknown = (name) => this.runs((i) => (Number.isNaN(this.channels[name].values[i]) ? this.reason[i] + 1 : 0)).filter((r) => r.value);
    this.unknownRuns = { valence: unknown("valence"), arousal: unknown("arousal") }; // value: 1 + why, 1: the other dimension is known
  }

  at(name, i) {
    const channel = this.channels[name];
    return channel && i >= 0 ? channel.values[i] : NaN;
  }

  // the frame shown at t, -1 where none is
  frameAt(t) {
    if (!this.n || t < this.times[0] || t >= this.end) return -1;
    let lo = 0, hi = this.n;
    while (hi - lo > 1) {
      const mid = (lo + hi) >> 1;
      if (this.times[mid] <= t) lo = mid; else hi = mid;
    }
    return lo;
  }

  nearestFrame(t) {
    return this.n ? (t < this.start ? 0 : t >= this.end ? this.n - 1 : this.frameAt(t)) : -1;
  }

  runs(of) {
    const out = [];
    for (let i = 0; i < this.n; i++) {
      const value = of(i);
      if (out.length && out.at(-1).value === value) out.at(-1).to = i + 1;
      else out.push({ value, from: i, to: i + 1 });
    }
    return out;
  }

  // words or utterances in order of start: the one being said at t
  spanAt(spans, t, hold = 0) {
    let lo = 0, hi = spans.length;
    while (lo < hi) {
      const mid = (lo + hi) >> 1;
      if (spans[mid].start_s <= t) lo = mid + 1; else hi = mid;
    }
    for (let k = lo - 1; k >= Math.max(0, lo - 4); k--) if (t < spans[k].end_s + hold) return k;
    return -1;
  }
}

// words without utterances: a new line after a pause
function sentencesOf(words) {
  const out = [];
  for (const w of words) {
    const last = out.at(-1);
    if (last && w.start_s - last.end_s < packed.line_pause_s) {
      last.end_s = w.end_s;
      last.text += " " + w.text.trim();
    } else out.push({ kind: "utterance", start_s: w.start_s, end_s: w.end_s, text: w.text.trim() });
  }
  return out;
}

// ---- words for numbers

const MINUS = "−";
const signed = (x) => (Number.isNaN(x) || x == null ? "–" : (x < 0 ? MINUS : "+") + Math.abs(x).toFixed(2));
function clockText(t, digits = 1) {
  const sign = t < 0 && Number(t.toFixed(digits)) !== 0 ? MINUS : "";
  const unit = 10 ** digits, total = Math.round(Math.abs(t) * unit);
  const seconds = (total % (60 * unit)) / unit, minutes = Math.floor(total / (60 * unit));
  const tail = seconds.toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return minutes < 60 ? `${sign}${minutes}:${tail}` : `${sign}${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${tail}`;
}
const el = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};

// colours live in the style sheet alone; read once a theme
const palette = new Map();
function colour(name) {
  if (!palette.has(name)) palette.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return palette.get(name);
}

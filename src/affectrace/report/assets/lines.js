// ---- lines: valence and arousal over time, and the lanes under them, all on one time scale

const LAYERS = {
  face: { dash: [], width: 1.4 }, voice: { dash: [6, 3], width: 1.5 }, words: { dash: [1.5, 2.5], width: 1.8 },
};
const layerStyle = (name) => LAYERS[name] ?? { dash: [8, 3, 2, 3], width: 1.4 };
const layerColour = (name) => colour(name in LAYERS ? name : "other");

function fitted(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  const { width, height } = canvas.getBoundingClientRect();
  const w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  Object.assign(canvas, { width: w, height: h }); // clears it and its pen, so that every drawing starts alike
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

class View {
  constructor(start, end) { this.reset(start, end); }
  reset(start, end) {
    Object.assign(this, { start, end: Math.max(end, start + 1e-3) });
    this.whole();
  }
  whole() { this.from = this.start; this.to = this.end; }
  get span() { return this.to - this.from; }
  get isWhole() { return this.from <= this.start && this.to >= this.end; }
  set(from, span) {
    const length = this.end - this.start;
    span = Math.min(Math.max(span, Math.min(0.25, length)), length);
    this.from = Math.min(Math.max(from, this.start), this.end - span);
    this.to = this.from + span;
  }
  zoom(factor, around) { this.set(around - (around - this.from) * factor, this.span * factor); }
  x(t, width) { return ((t - this.from) / this.span) * width; }
  t(x, width) { return this.from + (x / width) * this.span; }
}

// frames of `data` that a view shows, one more on either side
function framesIn(data, view) {
  return [Math.max(0, data.nearestFrame(view.from) - 1), Math.min(data.n, data.nearestFrame(view.to) + 2)];
}

const MEAN_PX = 4; // zoomed out, the line is a mean over about so many pixels, and the range is drawn finer

// the line as pieces without gaps: each point is a frame, or a block of frames `pixels` wide at most
function piecesOf(data, channel, view, width, pixels = MEAN_PX) {
  const [from, to] = framesIn(data, view);
  const perPixel = (to - from) / width, level = channel.levelFor(perPixel < 2 ? 1 : perPixel * pixels);
  const pieces = [];
  let piece = null;
  for (let k = Math.floor(from / level.size); k * level.size < to; k++) {
    if (Number.isNaN(level.low[k])) { piece = null; continue; }
    const first = k * level.size, after = Math.min(first + level.size, data.n);
    if (!piece) pieces.push((piece = []));
    const x = view.x(data.times[first], width), end = view.x(data.times[after], width);
    piece.push({ x: level.size > 1 ? (x + end) / 2 : x, end, low: level.low[k], high: level.high[k], mean: level.mean[k] });
  }
  return pieces;
}

function trail(pieces, y) {
  const path = new Path2D();
  for (const piece of pieces) {
    piece.forEach((p, i) => path[i ? "lineTo" : "moveTo"](p.x, y(p.mean)));
    path.lineTo(piece.at(-1).end, y(piece.at(-1).mean)); // the last frame is shown until its end
  }
  return path;
}

function areaBetween(pieces, y, upper, lower) {
  const path = new Path2D();
  for (const piece of pieces) {
    const { end } = piece.at(-1);
    path.moveTo(piece[0].x, y(upper(piece[0])));
    for (const p of piece) path.lineTo(p.x, y(upper(p)));
    path.lineTo(end, y(upper(piece.at(-1))));
    path.lineTo(end, y(lower(piece.at(-1))));
    for (let i = piece.length - 1; i >= 0; i--) path.lineTo(piece[i].x, y(lower(piece[i])));
    path.closePath();
  }
  return path;
}

// the range of the frames a pixel stands for, as whole columns: a jagged outline would take many times as long to fill
function fillRange(context, pieces, y) {
  for (const piece of pieces) {
    piece.forEach((p, i) => {
      const from = Math.floor(p.x), to = Math.max(from + 1, Math.floor(piece[i + 1]?.x ?? p.end));
      context.fillRect(from, y(p.high), to - from, y(p.low) - y(p.high));
    });
  }
}

// one standard deviation to either side of the line
function bandOf(data, name, view, width, y) {
  const spread = piecesOf(data, data.channels[`${name}_sd`], view, width).flat();
  const at = new Map(spread.map((p) => [p.x, p.mean]));
  const known = piecesOf(data, data.channels[name], view, width).map((piece) => piece.filter((p) => at.has(p.x))).filter((piece) => piece.length);
  return areaBetween(known, y, (p) => p.mean + at.get(p.x), (p) => p.mean - at.get(p.x));
}

function hatch(context, x, width, height, why) {
  context.save();
  context.beginPath();
  context.rect(x, 0, width, height);
  context.clip();
  context.fillStyle = colour("gap");
  context.fillRect(x, 0, width, height);
  context.strokeStyle = colour("gap-ink");
  context.lineWidth = 1;
  context.beginPath();
  for (let s = Math.floor((x - height) / 7) * 7; s < x + width; s += 7) { context.moveTo(s, height); context.lineTo(s + height, 0); }
  context.stroke();
  context.font = `11.5px ${colour("sans")}`;
  const room = context.measureText(why).width + 14;
  if (room < width) {
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = colour("gap");
    context.fillRect(x + (width - room) / 2, height - 28, room, 18);
    context.fillStyle = colour("soft");
    context.fillText(why, x + width / 2, height - 19);
  }
  context.restore();
}

function drawDimension(name, data, view, on) {
  const { context, width, height } = fitted($(`c-${name}`));
  const pad = 9, y = (v) => pad + ((1 - Math.max(-1, Math.min(1, v))) / 2) * (height - 2 * pad);
  for (const run of data.unknownRuns[name]) {
    const a = view.x(data.times[run.from], width), b = view.x(data.times[run.to], width);
    if (b > 0 && a < width) hatch(context, Math.max(a, 0), Math.max(1, Math.min(b, width) - Math.max(a, 0)), height, data.reasons[run.value - 1] || "not known");
  }
  context.font = `10.5px ${colour("sans")}`;
  context.textBaseline = "middle";
  for (const v of [-1, -0.5, 0, 0.5, 1]) {
    context.fillStyle = v === 0 ? colour("zero") : colour("grid");
    context.fillRect(0, Math.round(y(v)) - 0.5, width, 1);
  }
  const main = data.channels[name], pieces = piecesOf(data, main, view, width);
  context.lineJoin = context.lineCap = "round";
  context.fillStyle = context.strokeStyle = colour(name);
  context.globalAlpha = 0.1;
  context.fill(areaBetween(pieces, y, (p) => p.mean, () => 0));
  context.globalAlpha = 0.3;
  if (pieces.some((piece) => piece.some((p) => p.high !== p.low))) fillRange(context, piecesOf(data, main, view, width, 1), y);
  if (on.has("sd") && data.channels[`${name}_sd`]) {
    context.globalAlpha = 0.2;
    context.fill(bandOf(data, name, view, width, y));
  }
  context.globalAlpha = 1;
  context.lineCap = "butt";
  const thin = (from, channel, layer) => {
    const style = layerStyle(layer);
    context.strokeStyle = layerColour(layer);
    context.lineWidth = style.width;
    context.setLineDash(style.dash);
    context.stroke(trail(piecesOf(from, channel, view, width), y));
  };
  for (const layer of on) {
    if (layer instanceof TraceData) { if (layer !== data) thin(layer, layer.channels[name], ""); }
    else if (layer !== "sd" && data.channels[`${layer}_${name}`]) thin(data, data.channels[`${layer}_${name}`], layer);
  }
  context.setLineDash([]);
  context.lineCap = "round";
  context.strokeStyle = colour(name);
  context.lineWidth = 2.1;
  context.stroke(trail(pieces, y));
  context.fillStyle = colour("faint");
  context.textAlign = "right";
  for (const v of [-1, 0, 1]) context.fillText(v ? `${v < 0 ? MINUS : "+"}1` : "0", width - 3, y(v) + (v > 0 ? 7 : v < 0 ? -7 : -7));
}

// ---- lanes

function blocks(canvas, spans, view, paint) {
  const { context, width, height } = fitted($(canvas));
  for (const span of spans) {
    const a = view.x(span[0], width), b = view.x(span[1], width);
    if (b < 0 || a > width) continue;
    paint(context, Math.max(a, -20), Math.max(1, Math.min(b, width + 20) - Math.max(a, -20)), height, span[2]);
  }
}

function drawLanes(data, view) {
  const seconds = (run) => [data.times[run.from], data.times[run.to], run];
  blocks("c-face", data.foundRuns.map(seconds), view, (context, x, w, h, run) => {
    context.fillStyle = colour(run.value ? "found" : "missing");
    context.fillRect(x, run.value ? 0 : h * 0.32, w, run.value ? h : h * 0.36);
  });
  blocks("c-speech", data.speech.map((s) => [s.start_s, s.end_s, s]), view, (context, x, w, h) => {
    context.fillStyle = colour("speech");
    if (w < 5) return context.fillRect(x, 0, w, h);
    context.beginPath(); context.roundRect(x, 0, w, h, 3); context.fill();
  });
  blocks("c-flags", data.flags.map((s) => [s.start_s, s.end_s, s]), view, (context, x, w, h) => {
    context.fillStyle = colour("flag");
    context.fillRect(x, 0, Math.max(w, 3), h);
  });
  blocks("c-words", data.utterances.map((s) => [s.start_s, s.end_s, s]), view, (context, x, w, h, said) => drawUtterance(context, x, w, h, said, view));
}

function tint(valence, strength = 0.5) {
  if (valence == null) return "transparent";
  return `rgba(${colour(valence < 0 ? "negative" : "positive")}, ${(0.07 + strength * Math.min(1, Math.abs(valence))).toFixed(3)})`;
}

function drawUtterance(context, x, w, h, said, view) {
  const inner = w - 8;
  if (w < 5) { // too narrow for anything but its tint
    context.fillStyle = said.valence == null ? colour("line") : tint(said.valence, 0.9);
    context.fillRect(x, 0, w, h);
    return;
  }
  context.save();
  context.beginPath();
  context.roundRect(x + 0.5, 0.5, Math.max(1, w - 1), h - 1, Math.min(6, w / 2));
  context.fillStyle = said.valence == null ? colour("gap") : tint(said.valence);
  context.fill();
  context.strokeStyle = said.valence == null ? colour("line") : tint(said.valence, 0.9);
  context.stroke();
  context.clip();
  if (inner > 14) {
    context.fillStyle = colour("ink");
    context.font = `12px ${colour("sans")}`;
    context.textBaseline = "middle";
    const width = stackWidth();
    const places = said.words.map((word) => [word.text.trim(), view.x(word.start_s, width), view.x(word.end_s, width)]);
    const roomy = places.length && places.every(([text, , ], i) => (places[i + 1]?.[1] ?? x + w) - places[i][1] >= context.measureText(text).width + 3);
    if (roomy) places.forEach(([text, at]) => context.fillText(text, Math.max(at, x + 4), h / 2));
    else wrapped(context, said.text, inner).forEach((line, i, all) => context.fillText(line, x + 5, h / 2 + (i - (all.length - 1) / 2) * 15));
  }
  context.restore();
}

// at most two lines, the second one cut with an ellipsis
function wrapped(context, text, width) {
  const words = text.trim().split(/\s+/), lines = [""];
  for (const word of words) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (context.measureText(longer).width <= width || !lines.at(-1)) lines[lines.length - 1] = longer;
    else if (lines.length < 2) lines.push(word);
    else { lines[1] += " …"; break; }
  }
  return lines.map((line) => {
    while (line.length > 1 && context.measureText(line).width > width) line = `${line.replace(/ …$/, "").slice(0, -2).trimEnd()}…`;
    return line;
  });
}

// ---- axis and overview

const STEPS_S = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

function drawAxis(view) {
  const { context, width, height } = fitted($("c-axis"));
  const step = STEPS_S.find((s) => (s / view.span) * width >= 68) ?? 14400, digits = step < 0.1 ? 2 : step < 1 ? 1 : 0;
  context.font = `11px ${colour("sans")}`;
  context.fillStyle = colour("soft");
  context.textBaseline = "bottom";
  for (let k = Math.ceil(view.from / step); k * step <= view.to; k++) {
    const x = view.x(k * step, width), text = clockText(k * step, digits), half = context.measureText(text).width / 2;
    context.fillRect(Math.round(x) - 0.5, 0, 1, 4);
    if (x + half < width + 1) context.fillText(text, Math.max(0, x - half), height);
  }
}

function drawOverview(data, view) {
  const { context, width, height } = fitted($("c-overview"));
  const whole = new View(view.start, view.end), y = (v) => 5 + ((1 - v) / 2) * (height - 10);
  context.fillStyle = colour("zero");
  context.fillRect(0, Math.round(y(0)), width, 0.6);
  for (const name of ["arousal", "valence"]) {
    context.strokeStyle = colour(name);
    context.lineWidth = 1.1;
    context.lineJoin = "round";
    context.stroke(trail(piecesOf(data, data.channels[name], whole, width), y));
  }
  const [a, b] = [whole.x(view.from, 100), whole.x(view.to, 100)];
  Object.assign($("brush").style, { left: `${a}%`, width: `${b - a}%` });
}

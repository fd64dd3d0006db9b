// ---- page: wiring

const medium = packed.medium;
const traces = packed.traces.map((raw) => new TraceData(raw));
const view = new View(0, 1);
const layersOn = new Set(["sd", "face", "voice", "words"]);
const plane = new Plane();
const transcript = new Transcript((t) => seek(t));
let data = traces[0];
let media = null;
let clock = new FreeClock(data.start, data.end);
let hoverX = null;
const attention = packed.attention ? new AttentionView(packed.attention, (t) => seek(t)) : null;

const stackWidth = () => $("touch").clientWidth;
const stackLeft = () => $("touch").offsetLeft;

function seek(t) {
  clock.seek(Math.min(Math.max(t, data.start), Math.max(data.start, data.end - 1e-4)));
  if (t < view.from || t > view.to) { view.set(t - view.span / 4, view.span); drawLines(); }
  tick();
}

function drawLines() {
  const on = new Set([...layerNames(), "sd", ...traces].filter((layer) => layersOn.has(layer))); // always in this order
  drawDimension("valence", data, view, on);
  drawDimension("arousal", data, view, on);
  drawLanes(data, view);
  drawShares(data, view);
  drawAxis(view);
  drawOverview(data, view);
  $("zoom-all").disabled = $("zoom-out").disabled = view.isWhole;
}

let pending = false;
function drawSoon() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; drawLines(); move(); });
}

function drawAll() {
  palette.clear();
  drawLines();
  plane.draw();
  transcript.restain();
  attention?.draw();
  move();
}

// ---- what follows the clock

function quadrantName(v, a) {
  if (Number.isNaN(v) || Number.isNaN(a)) return "";
  return QUADRANTS.find((q) => (q.v > 0) === (v >= 0) && (q.a > 0) === (a >= 0)).text;
}

function subtitle(name, i) {
  const sd = data.at(`${name}_sd`, i);
  if (i < 0 || data.reason[i]) return i < 0 ? "outside the trace" : data.reasons[data.reason[i]];
  const value = data.at(name, i), words = { valence: ["unpleasant", "pleasant"], arousal: ["calm", "activated"] }[name];
  if (Number.isNaN(value)) return "not known";
  const text = Math.abs(value) < 0.1 ? "near neutral" : words[value < 0 ? 0 : 1];
  return Number.isNaN(sd) ? text : `± ${sd.toFixed(2)} · ${text}`;
}

function move() {
  const t = clock.now, i = data.frameAt(t), width = stackWidth();
  const x = view.x(t, width), inside = x >= -1 && x <= width + 1;
  $("cursor").hidden = !inside;
  $("cursor").style.transform = `translateX(${stackLeft() + x}px)`;
  $("cursor-small").style.left = `${((t - view.start) / (view.end - view.start)) * 100}%`;
  for (const name of ["valence", "arousal"]) {
    $(`now-${name}`).textContent = signed(data.at(name, i));
    $(`sub-${name}`).textContent = subtitle(name, i);
  }
  $("time").replaceChildren(clockText(t, 2), el("span", { textContent: `/ ${clockText(data.end)}` }));
  const touch = $("touch");
  touch.setAttribute("aria-valuenow", t.toFixed(2));
  touch.setAttribute("aria-valuetext", i >= 0 && !data.reason[i] ? `${clockText(t)}, valence ${signed(data.at("valence", i))}, arousal ${signed(data.at("arousal", i))}` : `${clockText(t)}, ${subtitle("valence", i)}`);
  plane.move(t);
  attention?.move(t);
  markWord(transcript.move(t), width);
  drawBox(i);
}

function markWord(word, width) {
  const mark = $("wordnow"), row = $("c-words").parentElement;
  mark.hidden = !word || row.hidden;
  if (mark.hidden) return;
  mark.textContent = word.text.trim();
  const at = view.x((word.start_s + word.end_s) / 2, width) - mark.offsetWidth / 2;
  mark.style.left = `${stackLeft() + Math.min(Math.max(at, 0), width - mark.offsetWidth)}px`;
  mark.style.top = `${row.offsetTop - 12}px`;
}

function drawBox(i) {
  const canvas = $("facebox"), on = $("box-toggle").getAttribute("aria-pressed") === "true";
  const { context, width, height } = fitted(canvas);
  if (!on || !media || medium.kind !== "video" || !media.videoWidth) return;
  const scale = Math.min(width / media.videoWidth, height / media.videoHeight);
  const w = media.videoWidth * scale, h = media.videoHeight * scale, left = (width - w) / 2, top = (height - h) / 2;
  const all = traces.length > 1 ? traces : [data];
  for (const trace of all) {
    const k = trace === data ? i : trace.frameAt(clock.now);
    if (!trace.box || k < 0 || Number.isNaN(trace.box[0][k])) continue;
    const [bx, by, bw, bh] = trace.box.map((part) => part[k]);
    context.strokeStyle = "rgba(0, 0, 0, .55)";
    context.lineWidth = trace === data ? 4 : 2.5;
    context.beginPath(); context.roundRect(left + bx * w, top + by * h, bw * w, bh * h, 5); context.stroke();
    context.strokeStyle = trace === data ? "#fff" : "rgba(255, 255, 255, .5)";
    context.lineWidth = trace === data ? 2 : 1;
    context.stroke();
  }
}

let running = false;
function tick() {
  const button = $("play"), playing = clock.playing;
  button.classList.toggle("playing", playing);
  button.setAttribute("aria-label", playing ? "Pause" : "Play");
  const t = clock.now;
  if (playing && t > view.to && !view.isWhole) { view.set(t - view.span * 0.1, view.span); drawLines(); }
  move();
  if (playing && !running) {
    running = true;
    requestAnimationFrame(() => { running = false; tick(); });
  }
}

const toggle = () => (clock.playing ? clock.pause() : clock.play());
function stepFrames(n) {
  const i = Math.min(Math.max(data.nearestFrame(clock.now) + n, 0), data.n - 1);
  clock.pause();
  if (i >= 0) seek((data.times[i] + data.times[i + 1]) / 2); // its middle: never the frame beside it by rounding
}

// ---- pointing

function tipAt(x, y, where) {
  const tip = $("tip"), t = view.t(x, stackWidth()), i = data.frameAt(t);
  const said = data.utterances[data.spanAt(data.utterances, t)], flagged = data.flags.filter((f) => t >= f.start_s && t < f.end_s);
  const rows = [el("p", {}, el("b", { textContent: clockText(t, 2) }), i >= 0 ? `  frame ${i + 1}` : "")];
  if (i >= 0 && data.reason[i]) rows.push(el("p", { textContent: `No estimate: ${data.reasons[data.reason[i]]}` }));
  const found = i >= 0 && (!data.box || !Number.isNaN(data.box[0][i]));
  if (where === "face" && i >= 0 && !(data.reason[i] && !data.box)) rows.push(el("p", { textContent: data.box ? (found ? "Face found" : "Face not found") : "Estimated" }));
  if (i >= 0) rows.push(valuesTable(i));
  if (i >= 0 && shareText(data, i)) rows.push(el("p", { textContent: `Share: ${shareText(data, i)}` }));
  if (where === "words" && said) rows.push(el("p", { textContent: `“${said.text}”` }), ...(said.valence == null ? [] : [el("p", { className: "why", textContent: `By its words alone: valence ${signed(said.valence)}${said.arousal == null ? "" : `, arousal ${signed(said.arousal)}`}` })]));
  for (const flag of flagged) rows.push(el("p", { className: "why", textContent: flag.text }));
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const box = $("lines").getBoundingClientRect(), width = tip.offsetWidth;
  const left = stackLeft() + $("stack").offsetLeft + x;
  tip.style.transform = `translate(${left + 16 + width > box.width ? left - width - 14 : left + 14}px, ${$("stack").offsetTop + Math.max(0, Math.min(y - 12, $("stack").offsetHeight - tip.offsetHeight))}px)`;
}

function valuesTable(i) {
  const table = el("table"), line = (name, v, a) => el("tr", {}, el("td", { textContent: name }), el("td", { textContent: v }), el("td", { textContent: a }));
  if (data.reason[i] && !layerNames().length) return "";
  table.append(el("tr", {}, el("th"), el("th", { textContent: "val." }), el("th", { textContent: "aro." })));
  if (!data.reason[i]) table.append(line("estimate", signed(data.at("valence", i)), signed(data.at("arousal", i))));
  for (const name of layerNames()) {
    const [v, a] = [data.at(`${name}_valence`, i), data.at(`${name}_arousal`, i)];
    if (!Number.isNaN(v) || !Number.isNaN(a)) table.append(line(name, signed(v), signed(a)));
  }
  return table.rows.length > 1 ? table : "";
}

function laneAt(y) {
  for (const name of ["face", "speech", "words", "flags"]) {
    const row = $(`c-${name}`).parentElement;
    if (!row.hidden && y >= row.offsetTop - 3 && y <= row.offsetTop + row.offsetHeight + 3) return name;
  }
  return "plot";
}

// a click on the words goes to the word's own start, anywhere else to the very place
function seekAt(x, y, dragging) {
  let t = view.t(x, stackWidth());
  if (!dragging && laneAt(y) === "words") {
    const word = data.words[data.spanAt(data.words, t)] ?? data.utterances[data.spanAt(data.utterances, t)];
    if (word) t = word.start_s;
  }
  seek(t);
}

function wirePointing() {
  const touch = $("touch"), ghost = $("ghost");
  const place = (event) => {
    const box = touch.getBoundingClientRect();
    return [Math.min(Math.max(event.clientX - box.left, 0), box.width), event.clientY - box.top];
  };
  let dragging = false;
  touch.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    touch.setPointerCapture(event.pointerId);
    dragging = true;
    seekAt(...place(event), false);
  });
  touch.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    hoverX = x;
    if (dragging) seekAt(x, y, true);
    ghost.hidden = false;
    ghost.style.transform = `translateX(${stackLeft() + x}px)`;
    if (event.pointerType === "mouse") tipAt(x, y, laneAt(y));
  });
  const leave = () => { ghost.hidden = $("tip").hidden = true; hoverX = null; };
  touch.addEventListener("pointerup", () => { dragging = false; });
  touch.addEventListener("pointercancel", () => { dragging = false; leave(); });
  touch.addEventListener("pointerleave", leave);
  touch.addEventListener("wheel", (event) => { // a plain wheel scrolls the page
    const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!event.ctrlKey && !event.metaKey && !(sideways && !view.isWhole)) return;
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) view.zoom(Math.exp(event.deltaY * 0.0022), view.t(place(event)[0], stackWidth()));
    else view.set(view.from + ((event.deltaX || event.deltaY) / stackWidth()) * view.span, view.span);
    drawSoon();
  }, { passive: false });
  touch.addEventListener("dblclick", () => { view.whole(); drawSoon(); });
}

function wireOverview() {
  const box = $("overview");
  const at = (event) => view.start + ((event.clientX - box.getBoundingClientRect().left) / box.clientWidth) * (view.end - view.start);
  let grip = null;
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    const t = at(event), edge = event.target.dataset?.edge;
    if (edge) grip = { edge };
    else if (view.isWhole) { grip = { edge: "new", from: t }; seek(t); }
    else if (t < view.from || t > view.to) { view.set(t - view.span / 2, view.span); grip = { offset: view.span / 2 }; }
    else grip = { offset: t - view.from };
    drawSoon();
  });
  box.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const t = Math.min(Math.max(at(event), view.start), view.end);
    if (grip.edge === "start") view.set(Math.min(t, view.to - 0.05), view.to - Math.min(t, view.to - 0.05));
    else if (grip.edge === "end") view.set(view.from, t - view.from);
    else if (grip.edge === "new") { if (Math.abs(t - grip.from) > view.span / 100 || !view.isWhole) view.set(Math.min(t, grip.from), Math.abs(t - grip.from)); }
    else view.set(t - grip.offset, view.span);
    drawSoon();
  });
  for (const name of ["pointerup", "pointercancel"]) box.addEventListener(name, () => { grip = null; });
  box.addEventListener("dblclick", () => { view.whole(); drawSoon(); });
  box.addEventListener("wheel", (event) => {
    event.preventDefault();
    view.zoom(Math.exp(event.deltaY * 0.0022), at(event));
    drawSoon();
  }, { passive: false });
}

function wireKeys() {
  const zoomAround = () => Math.min(Math.max(clock.now, view.from), view.to);
  const zoom = (factor) => { view.zoom(factor, zoomAround()); drawSoon(); };
  $("zoom-in").addEventListener("click", () => zoom(0.5));
  $("zoom-out").addEventListener("click", () => zoom(2));
  $("zoom-all").addEventListener("click", () => { view.whole(); drawSoon(); });
  const keys = {
    " ": toggle, k: toggle, ",": () => stepFrames(-1), ".": () => stepFrames(1), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
    0: () => { view.whole(); drawSoon(); }, Home: () => seek(data.start), End: () => seek(data.end),
    ArrowLeft: (shift) => seek(clock.now - (shift ? 5 : 1)), ArrowRight: (shift) => seek(clock.now + (shift ? 5 : 1)),
    PageUp: () => seek(clock.now + 10), PageDown: () => seek(clock.now - 10),
  };
  document.addEventListener("keydown", (event) => {
    const own = event.target === document.body || event.target === $("touch");
    const typing = event.target.closest?.("input, select, textarea, summary, a") || (event.target.closest?.("button") && [" ", "Enter"].includes(event.key));
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    if (!own && ["Home", "End", "PageUp", "PageDown"].includes(event.key)) return;
    if (event.target !== $("touch") && ["Home", "End", "PageUp", "PageDown"].includes(event.key)) return;
    event.preventDefault();
    keys[event.key](event.shiftKey);
  });
  $("play").addEventListener("click", toggle);
  $("speed").addEventListener("change", (event) => { clock.rate = Number(event.target.value); });
  $("print").addEventListener("click", () => window.print());
}

// ---- layers

const layerNames = () => [...new Set(Object.keys(data.channels).map((k) => /^(.+)_(?:valence|arousal)$/.exec(k)?.[1]).filter(Boolean))]
  .sort((a, b) => ((Object.keys(LAYERS).indexOf(a) + 1) || 9) - ((Object.keys(LAYERS).indexOf(b) + 1) || 9));

function sample(stroke, dash, width) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 22 10");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [k, v] of Object.entries({ x1: 0, x2: 22, y1: 5, y2: 5, stroke, "stroke-width": width, "stroke-dasharray": dash.join(" ") })) line.setAttribute(k, v);
  svg.append(line);
  return svg;
}

function showLayers() {
  const chip = (name, label, mark) => {
    const button = el("button", { type: "button", className: "chip" }, ...(mark ? [mark] : []), label);
    button.dataset.layer = name.label ?? name;
    button.setAttribute("aria-pressed", layersOn.has(name));
    button.addEventListener("click", () => {
      layersOn.has(name) ? layersOn.delete(name) : layersOn.add(name);
      button.setAttribute("aria-pressed", layersOn.has(name));
      drawSoon();
    });
    return button;
  };
  const title = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
  const chips = layerNames().map((name) => chip(name, title(name), sample(`var(--${name in LAYERS ? name : "other"})`, layerStyle(name).dash, 2)));
  if (["valence_sd", "arousal_sd"].some((k) => data.channels[k]?.any)) chips.push(chip("sd", "± 1 SD", sample("rgba(127, 127, 127, .4)", [], 9)));
  for (const other of traces) if (other !== data) chips.push(chip(other, `with ${other.label}`, sample("var(--other)", layerStyle("").dash, 2)));
  $("layers").replaceChildren(...chips);
}

// ---- whose trace

function show(index) {
  data = traces[index];
  const t = clock.now;
  view.reset(data.start, data.end);
  if (!media) {
    clock = new FreeClock(data.start, data.end);
    if (t >= data.start && t < data.end) clock.seek(t);
    clock.onChange = tick;
  }
  for (const node of document.querySelectorAll("[data-trace]")) node.hidden = Number(node.dataset.trace) !== index;
  const rows = { speech: data.speech.length, words: data.utterances.length, flags: data.flags.length, share: shareNames(data).length };
  $("share-names").replaceChildren(...shareLegend(data));
  for (const [name, there] of Object.entries(rows)) $(`g-${name}`).hidden = $(`c-${name}`).parentElement.hidden = !there;
  $("g-face").textContent = data.box ? "Face" : "Estimate";
  $("box-toggle").hidden = !(data.box && medium.kind === "video");
  Object.entries({ "aria-valuemin": data.start, "aria-valuemax": data.end }).forEach(([k, v]) => $("touch").setAttribute(k, v.toFixed(2)));
  showLayers();
  transcript.show(data);
  plane.show(data);
  drawLines();
  tick();
}

function wireMedia() {
  const element = attachMedia(medium);
  clock.onChange = tick;
  if (!element) return;
  const failed = () => {
    if (!media) return;
    media = null;
    element.remove();
    $("screen").dataset.kind = "none";
    $("mute").hidden = $("box-toggle").hidden = true;
    $("media-message").textContent = medium.href
      ? `${medium.name} could not be played from beside this page. Keep both files together, and see that the browser plays its format. The trace below works without it.`
      : "This browser does not play the embedded recording. The trace below works without it.";
    clock = new FreeClock(data.start, data.end);
    clock.onChange = tick;
    tick();
  };
  media = element;
  element.addEventListener("error", failed);
  clock = new MediaClock(element, medium);
  clock.onChange = tick;
  element.addEventListener("loadeddata", tick);
  $("mute").hidden = !medium.has_audio;
  $("mute").addEventListener("click", () => {
    element.muted = !element.muted;
    $("mute").setAttribute("aria-pressed", element.muted);
  });
  element.addEventListener("click", toggle);
  $("box-toggle").addEventListener("click", (event) => {
    const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", on);
    move();
  });
}

// on paper: the whole recording, everything unfolded, dark on white
function wireTheme() {
  const paper = matchMedia("print");
  let before = null;
  const change = (printing) => {
    if (printing === (before !== null)) return;
    if (printing) {
      before = { from: view.from, span: view.span, folded: [...document.querySelectorAll("details:not([open])")] };
      view.whole();
      before.folded.forEach((d) => { d.open = true; });
    } else {
      view.set(before.from, before.span);
      before.folded.forEach((d) => { d.open = false; });
      before = null;
    }
    drawAll();
  };
  paper.addEventListener("change", (event) => change(event.matches));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  new ResizeObserver(drawAllSoon).observe($("stack"));
  new ResizeObserver(drawAllSoon).observe($("plane"));
}

let redraw = false;
function drawAllSoon() {
  if (redraw) return;
  redraw = true;
  requestAnimationFrame(() => { redraw = false; drawAll(); });
}

$("tail-s").textContent = TAIL_S;
wireMedia();
wirePointing();
wireOverview();
wireKeys();
for (const input of document.querySelectorAll("#people input")) input.addEventListener("change", () => show(Number(input.value)));
show(0);
wireTheme();

// ---- attention: one map a pathway, and the lane of shares

const MODALITY_COLOURS = { visual: "face", audio: "voice", text: "words" };
const modalityColour = (name) => colour(MODALITY_COLOURS[name] ?? "other");
const shareNames = (data) => Object.keys(data.channels).filter((k) => k.startsWith("share_"));
const MAP_LEFT = 62, MAP_BOTTOM = 58, MAP_TOP = 4, LABEL_PX = 14;
const snapped = (x) => Math.round(x * (window.devicePixelRatio || 1)) / (window.devicePixelRatio || 1); // no seams between cells

// each modality's share of a frame, one on the other; white where nothing counts
function drawShares(data, view) {
  const canvas = $("c-share");
  if (canvas.parentElement.hidden) return;
  const { context, width, height } = fitted(canvas), names = shareNames(data);
  const from = Math.max(0, data.nearestFrame(view.from)), to = Math.min(data.n, data.nearestFrame(view.to) + 1);
  const step = Math.max(1, Math.floor((to - from) / (2 * width)));
  for (let i = from; i < to; i += step) {
    const a = snapped(view.x(data.times[i], width)), b = snapped(view.x(data.times[Math.min(i + step, to)], width));
    let base = height;
    for (const name of names) {
      const part = data.at(name, i);
      if (!(part > 0)) continue;
      context.fillStyle = modalityColour(name.slice(6));
      context.fillRect(a, base - part * height, b - a, part * height);
      base -= part * height;
    }
  }
}

const shareText = (data, i) => shareNames(data).map((k) => [k.slice(6), data.at(k, i)]).filter(([, x]) => !Number.isNaN(x))
  .map(([name, x]) => `${packed.attention?.names[name] ?? name} ${Math.round(x * 100)}%`).join(", ");

function shareLegend(data) {
  return shareNames(data).reverse().map((k) => {
    const name = k.slice(6), node = el("span", { textContent: { visual: "face", audio: "voice", text: "words" }[name] ?? name });
    node.style.color = `var(--${MODALITY_COLOURS[name] ?? "other"})`;
    return node;
  });
}

class AttentionView {
  constructor(packed, onSeek) {
    Object.assign(this, packed, { at: 0, layer: 0, now: 0, onSeek });
    this.figures = packed.pathways.map(([m, n]) => this.figure(m, n));
    $("maps").replaceChildren(...this.figures.map((f) => f.node));
    const layers = Math.max(...packed.windows.map((w) => Math.max(...Object.values(w.maps).map((x) => x.layers.length))));
    $("heads").replaceChildren(...Array.from({ length: layers }, (_, i) => el("option", { value: i, textContent: i ? `head ${i}` : "mean" })));
    $("heads").parentElement.hidden = layers < 2;
    $("heads").addEventListener("change", (event) => { this.layer = Number(event.target.value); this.draw(); });
    $("window-before").addEventListener("click", () => this.show(this.at - 1, true));
    $("window-after").addEventListener("click", () => this.show(this.at + 1, true));
    for (const node of document.querySelectorAll("#attention .goto")) node.addEventListener("click", () => onSeek(Number(node.dataset.t)));
    new ResizeObserver(() => this.drawSoon()).observe($("maps"));
    this.show(0);
  }

  figure(m, n) {
    const still = el("canvas"), moving = el("canvas"), scale = el("span", { className: "scale" }), tip = el("div", { className: "tip", hidden: true });
    const title = el("figcaption", {}, el("b", { textContent: this.names[m] }), " attends to ", el("b", { textContent: this.names[n] }), scale);
    title.children[0].style.color = `var(--${MODALITY_COLOURS[m] ?? "other"})`;
    title.children[1].style.color = `var(--${MODALITY_COLOURS[n] ?? "other"})`;
    still.setAttribute("role", "img");
    still.setAttribute("aria-label", `Attention map: when the ${this.names[m]} attends to which moment of the ${this.names[n]}. The list below names what gets most attention.`);
    moving.setAttribute("aria-hidden", "true");
    const square = el("div", { className: "map" }, still, moving, tip), figure = { m, n, still, moving, scale, tip, node: el("figure", {}, title, square) };
    moving.addEventListener("pointermove", (event) => this.point(figure, event));
    moving.addEventListener("pointerleave", () => { tip.hidden = true; });
    moving.addEventListener("click", (event) => { const t = this.place(figure, event).key; if (t != null) this.onSeek(t); });
    return figure;
  }

  get window() { return this.windows[this.at]; }

  show(index, seek = false) {
    this.at = Math.min(Math.max(index, 0), this.windows.length - 1);
    const { start, end } = this.window;
    $("window-name").textContent = `${clockText(start)} to ${clockText(end)}${this.windows.length > 1 ? ` (${this.at + 1} of ${this.windows.length})` : ""}`;
    $("window-before").disabled = this.at === 0;
    $("window-after").disabled = this.at === this.windows.length - 1;
    $("window-before").hidden = $("window-after").hidden = this.windows.length < 2;
    if (seek) this.onSeek(start + 1e-4);
    this.draw();
  }

  // follows the cursor from window to window; of overlapping ones the one shown stays
  move(t) {
    this.now = t;
    if (t < this.window.start || t >= this.window.end) {
      const there = this.windows.findIndex((w) => t >= w.start && t < w.end);
      if (there >= 0) return this.show(there);
    }
    for (const f of this.figures) this.drawNow(f);
  }

  drawSoon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() { for (const f of this.figures) { this.drawMap(f); this.drawNow(f); } }

  scales(width, height) {
    const { start, end } = this.window, w = width - MAP_LEFT - 2, h = height - MAP_BOTTOM - MAP_TOP, span = end - start || 1;
    return { w, h, x: (t) => MAP_LEFT + ((t - start) / span) * w, y: (t) => MAP_TOP + ((t - start) / span) * h,
      key: (x) => start + ((x - MAP_LEFT) / w) * span, query: (y) => start + ((y - MAP_TOP) / h) * span };
  }

  values(f) {
    const map = this.window.maps[`${f.m}.${f.n}`];
    if (!map) return null;
    const layer = map.layers[Math.min(this.layer, map.layers.length - 1)];
    map.bytes ??= new Map();
    if (!map.bytes.has(layer)) map.bytes.set(layer, bytesOf(layer));
    return { scale: map.scale, bytes: map.bytes.get(layer), rows: this.window.axes[f.m], columns: this.window.axes[f.n] };
  }

  drawMap(f) {
    const { context, width, height } = fitted(f.still), found = this.values(f), to = this.scales(width, height);
    context.fillStyle = colour("gap");
    context.fillRect(MAP_LEFT, MAP_TOP, to.w, to.h);
    if (found) {
      const { rows, columns, bytes } = found, most = Math.max(1, bytes.reduce((a, b) => (b !== this.missing && b > a ? b : a), 0));
      f.scale.textContent = `up to ${((most / (this.missing - 1)) * found.scale).toFixed(1)}×`;
      const n = columns.starts.length;
      const edges = columns.starts.map((a, j) => [snapped(to.x(Math.max(a, this.window.start))), snapped(to.x(Math.min(columns.ends[j], this.window.end)))]);
      for (let i = 0; i < rows.starts.length; i++) {
        const top = snapped(to.y(Math.max(rows.starts[i], this.window.start))), bottom = snapped(to.y(Math.min(rows.ends[i], this.window.end)));
        for (let j = 0; j < n; j++) {
          const q = bytes[i * n + j];
          if (q === this.missing) continue;
          context.fillStyle = colour("card");
          context.globalAlpha = 1;
          const [a, b] = edges[j], w = Math.max(b - a, 0.5), h = Math.max(bottom - top, 0.5);
          context.fillRect(a, top, w, h);
          context.fillStyle = `rgb(${colour("density")})`;
          context.globalAlpha = 0.03 + 0.97 * (q / most);
          context.fillRect(a, top, w, h);
        }
      }
    }
    context.globalAlpha = 1;
    context.strokeStyle = colour("line");
    context.strokeRect(MAP_LEFT + 0.5, MAP_TOP + 0.5, to.w - 1, to.h - 1);
    this.label(context, f.m, to, height, true);
    this.label(context, f.n, to, height, false);
  }

  // words by their text where they fit, everything else by the clock
  label(context, modality, to, height, down) {
    const { start, end } = this.window, font = `11px ${colour("sans")}`;
    context.font = font;
    context.fillStyle = colour("soft");
    const said = modality === "text" ? this.words.filter(([, a]) => a < end && a >= start) : [];
    const step = STEPS_S.find((s) => (s / (end - start || 1)) * (down ? to.h : to.w) >= (down ? 24 : 46)) ?? 14400;
    const ticks = said.length ? said.map(([word, a, b]) => [(a + Math.min(b, end)) / 2, word])
      : Array.from({ length: Math.max(0, Math.floor(end / step) - Math.ceil(start / step) + 1) }, (_, k) => (Math.ceil(start / step) + k) * step).map((t) => [t, clockText(t, step < 1 ? 1 : 0)]);
    let last = -1e9;
    for (const [t, label] of ticks) {
      const at = down ? to.y(t) : to.x(t);
      if (at - last < (said.length ? LABEL_PX : 1)) continue;
      last = at;
      context.save();
      if (down) {
        context.textAlign = "right"; context.textBaseline = "middle";
        context.fillText(clipped(context, label, MAP_LEFT - 6), MAP_LEFT - 5, Math.min(Math.max(at, 7), MAP_TOP + to.h - 5));
      } else if (said.length) {
        context.translate(at + 3, MAP_TOP + to.h + 6); context.rotate(-Math.PI / 3);
        context.textAlign = "right"; context.textBaseline = "middle";
        context.fillText(clipped(context, label, 60), 0, 0);
      } else {
        context.textAlign = at < MAP_LEFT + 12 ? "left" : at > MAP_LEFT + to.w - 12 ? "right" : "center"; context.textBaseline = "top";
        context.fillText(label, at, MAP_TOP + to.h + 6);
      }
      context.restore();
    }
  }

  drawNow(f) {
    const { context, width, height } = fitted(f.moving), to = this.scales(width, height), { start, end } = this.window;
    if (this.now < start || this.now >= end) return;
    context.fillStyle = colour("ink");
    context.globalAlpha = 0.55;
    context.fillRect(MAP_LEFT, Math.round(to.y(this.now)) - 0.5, to.w, 1);
    context.fillRect(Math.round(to.x(this.now)) - 0.5, MAP_TOP, 1, to.h);
  }

  place(f, event) {
    const box = f.moving.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top, to = this.scales(box.width, box.height);
    const inside = x >= MAP_LEFT && y >= MAP_TOP && y <= MAP_TOP + to.h && x <= MAP_LEFT + to.w;
    return inside ? { x, y, key: to.key(x), query: to.query(y) } : { x, y, key: null, query: null };
  }

  wordAt(t) {
    const word = this.words.findLast(([, a]) => a <= t);
    return word ? `“${word[0]}”` : "";
  }

  point(f, event) {
    const { x, y, key, query } = this.place(f, event), found = this.values(f);
    f.tip.hidden = key == null || !found;
    if (f.tip.hidden) return;
    const at = (axis, t) => axis.starts.findLastIndex((a, i) => a <= t && t < Math.max(axis.ends[i], axis.starts[i + 1] ?? 0));
    const i = at(found.rows, query), j = at(found.columns, key), q = i < 0 || j < 0 ? this.missing : found.bytes[i * found.columns.starts.length + j];
    const name = (m, t) => `${clockText(t, 1)}${m === "text" ? ` ${this.wordAt(t)}` : ""}`;
    const said = q === this.missing ? "nothing there" : `${((q / (this.missing - 1)) * found.scale).toFixed(2)} times even attention`;
    f.tip.replaceChildren(el("p", {}, `${this.names[f.m]} at `, el("b", { textContent: name(f.m, query) })),
      el("p", {}, `attends to ${this.names[f.n]} at `, el("b", { textContent: name(f.n, key) })), el("p", { className: "why", textContent: said }));
    const wide = f.tip.offsetWidth, room = f.moving.clientWidth;
    f.tip.style.transform = `translate(${Math.max(0, Math.min(x + 14, room - wide))}px, ${y + 18}px)`;
  }
}

function clipped(context, label, width) {
  let text = label;
  while (text.length > 2 && context.measureText(text).width > width) text = `${text.replace(/…$/, "").slice(0, -1)}…`;
  return text;
}

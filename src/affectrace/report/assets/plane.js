// ---- plane: the circumplex (Russell 1980), where the trace has been and where it is

const QUADRANTS = [
  { text: "distressed, tense", v: -1, a: 1 }, { text: "excited, joyful", v: 1, a: 1 },
  { text: "low, sad", v: -1, a: -1 }, { text: "calm, content", v: 1, a: -1 },
];
const GRID = 72, BLUR_CELLS = 2.2, TAIL_S = 3;

// a place in the plane takes both dimensions
const unplaced = (data, i) => Number.isNaN(data.channels.valence.values[i]) || Number.isNaN(data.channels.arousal.values[i]);

// (GRID, GRID) seconds spent in each cell, blurred; row 0 is arousal +1
function densityOf(data) {
  const cells = new Float32Array(GRID * GRID);
  const { valence, arousal } = data.channels;
  const cell = (x) => Math.min(GRID - 1, Math.max(0, Math.floor(((x + 1) / 2) * GRID)));
  for (let i = 0; i < data.n; i++) {
    if (unplaced(data, i)) continue;
    cells[cell(-arousal.values[i]) * GRID + cell(valence.values[i])] += data.times[i + 1] - data.times[i];
  }
  const reach = Math.ceil(3 * BLUR_CELLS), kernel = [];
  for (let k = -reach; k <= reach; k++) kernel.push(Math.exp(-(k * k) / (2 * BLUR_CELLS ** 2)));
  const pass = (from, stride, other) => {
    const to = new Float32Array(from.length);
    for (let r = 0; r < GRID; r++) for (let c = 0; c < GRID; c++) {
      const amount = from[r * other + c * stride];
      if (amount) for (let k = -reach; k <= reach; k++) if (c + k >= 0 && c + k < GRID) to[r * other + (c + k) * stride] += amount * kernel[k + reach];
    }
    return to;
  };
  return pass(pass(cells, 1, GRID), GRID, 1);
}

function densityImage(density) {
  const image = el("canvas", { width: GRID, height: GRID }), context = image.getContext("2d");
  const pixels = context.createImageData(GRID, GRID), rgb = colour("density").split(",").map(Number);
  const most = density.reduce((m, x) => Math.max(m, x), 0) || 1;
  density.forEach((x, i) => pixels.data.set([...rgb, 235 * (x / most) ** 0.6], 4 * i));
  context.putImageData(pixels, 0, 0);
  return image;
}

class Plane {
  show(data) {
    this.data = data;
    this.density = densityOf(data);
    this.draw();
  }

  draw() {
    const { context, width } = fitted($("plane-still"));
    const pad = 25, side = width - 2 * pad, at = (v, a) => [pad + ((v + 1) / 2) * side, pad + ((1 - a) / 2) * side];
    this.at = at;
    context.strokeStyle = colour("line");
    context.lineWidth = 1;
    context.strokeRect(pad + 0.5, pad + 0.5, side - 1, side - 1);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(densityImage(this.density), pad, pad, side, side);
    context.strokeStyle = colour("zero");
    context.beginPath();
    context.arc(...at(0, 0), side / 2, 0, 2 * Math.PI);
    context.moveTo(...at(-1, 0)); context.lineTo(...at(1, 0));
    context.moveTo(...at(0, -1)); context.lineTo(...at(0, 1));
    context.stroke();
    context.fillStyle = colour("soft");
    context.textBaseline = "middle";
    context.font = `600 11.5px ${colour("sans")}`;
    context.textAlign = "center";
    context.fillText("arousal +1", width / 2, pad - 13);
    context.fillText(`arousal ${MINUS}1`, width / 2, width - pad + 13);
    for (const [text, x, turn] of [[`valence ${MINUS}1`, pad - 13, -1], ["valence +1", width - pad + 13, 1]]) {
      context.save();
      context.translate(x, width / 2);
      context.rotate((turn * Math.PI) / 2);
      context.fillText(text, 0, 0);
      context.restore();
    }
    context.font = `12px ${colour("sans")}`;
    for (const q of QUADRANTS) {
      const [x, y] = at(q.v * 0.97, q.a * 0.93);
      context.textAlign = q.v < 0 ? "left" : "right";
      context.fillText(q.text, x, y);
    }
  }

  // the dot, and where it came from over the last TAIL_S seconds
  move(t) {
    const { context } = fitted($("plane-now")), { data, at } = this;
    const now = data.frameAt(t);
    if (now < 0 || unplaced(data, now)) return;
    const { valence, arousal } = data.channels;
    const step = Math.max(1, Math.floor((now - data.nearestFrame(t - TAIL_S)) / 120));
    context.lineCap = "butt"; // round ends would show as beads where see-through pieces meet
    context.strokeStyle = colour("dot");
    let last = null;
    for (let i = Math.max(0, data.nearestFrame(t - TAIL_S)); i <= now; i += step) {
      if (unplaced(data, i)) { last = null; continue; }
      const here = at(valence.values[i], arousal.values[i]), age = (t - data.times[i]) / TAIL_S;
      if (last) {
        context.globalAlpha = Math.max(0, 1 - age) * 0.85;
        context.lineWidth = 1 + 2.2 * (1 - age);
        context.beginPath(); context.moveTo(...last); context.lineTo(...here); context.stroke();
      }
      last = here;
    }
    context.globalAlpha = 1;
    context.beginPath();
    context.arc(...at(valence.values[now], arousal.values[now]), 6.5, 0, 2 * Math.PI);
    context.fillStyle = colour("dot");
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = colour("card");
    context.stroke();
  }
}

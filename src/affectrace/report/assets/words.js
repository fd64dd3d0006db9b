// ---- words: the transcript; the current word is marked, a click seeks

const WORD_HOLD_S = 0.25; // a word stays marked through the short pause before the next one

class Transcript {
  constructor(onSeek) {
    this.list = $("utterances");
    this.current = { word: null, line: null };
    this.list.addEventListener("click", (event) => {
      const target = event.target.closest("[data-t]");
      if (target) onSeek(Number(target.dataset.t));
    });
  }

  show(data) {
    this.data = data;
    this.current = { word: null, line: null };
    $("transcript").hidden = !data.utterances.length;
    this.lines = data.utterances.map((said) => this.line(said));
    this.list.classList.toggle("long", this.lines.length > 200);
    this.list.replaceChildren(...this.lines);
  }

  line(said) {
    const text = el("p");
    if (said.words.length) {
      said.words.forEach((word, i) => {
        const node = el("span", { className: word.confidence != null && word.confidence < packed.unsure_below ? "w unsure" : "w", textContent: word.text.trim() });
        node.dataset.t = word.start_s;
        if (word.confidence != null) node.title = `${clockText(word.start_s, 2)} · recognised with ${Math.round(word.confidence * 100)}% confidence`;
        word.node = node;
        text.append(i ? " " : "", node);
      });
    } else {
      text.textContent = said.text;
      text.dataset.t = said.start_s;
      text.className = "w";
    }
    if (said.valence != null) text.style.background = tint(said.valence);
    const start = el("button", { type: "button", textContent: clockText(said.start_s) });
    start.dataset.t = said.start_s;
    start.setAttribute("aria-label", `Go to ${clockText(said.start_s)}: ${said.text}`);
    const own = said.valence == null ? [] : [el("output", { textContent: `V ${signed(said.valence)}${said.arousal == null ? "" : `  A ${signed(said.arousal)}`}` })];
    return el("li", {}, start, text, ...own);
  }

  restain() {
    this.lines?.forEach((line, i) => {
      const { valence } = this.data.utterances[i];
      if (valence != null) line.querySelector("p").style.background = tint(valence);
    });
  }

  // returns the word said at t, for the time line's own mark
  move(t) {
    const { data } = this, word = data.words[data.spanAt(data.words, t, WORD_HOLD_S)] ?? null, line = this.lines[data.spanAt(data.utterances, t)] ?? null;
    if (word !== this.current.word) {
      this.current.word?.node?.classList.remove("now");
      word?.node?.classList.add("now");
    }
    if (line !== this.current.line) {
      this.current.line?.classList.remove("now");
      line?.classList.add("now");
      if (line) this.list.scrollTop = Math.max(0, line.offsetTop - this.list.clientHeight / 3);
    }
    this.current = { word, line };
    return word;
  }
}

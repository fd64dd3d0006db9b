// ---- clock: the medium's own time (0 where it begins) and the trace's time (as the file stamps its frames)

class MediaClock {
  constructor(element, medium) {
    this.element = element;
    this.offset = medium.zero_s; // trace time at currentTime 0
    this.firstFrame = medium.first_frame_s;
    this.untouched = true; // the player still shows what it began with
    this.onChange = () => {};
    for (const name of ["play", "pause", "ended", "seeked", "timeupdate", "ratechange"]) element.addEventListener(name, () => this.onChange());
    if (element.requestVideoFrameCallback && this.firstFrame != null) this.calibrate();
  }

  // Players differ in where they put the first frame when a file begins before or after zero: ask the player
  calibrate() {
    this.element.requestVideoFrameCallback((_, frame) => {
      if (this.untouched) this.offset = this.firstFrame - frame.mediaTime;
      this.onChange();
    });
  }

  get now() { return this.element.currentTime + this.offset; }
  get playing() { return !this.element.paused && !this.element.ended; }
  seek(t) { this.untouched = false; this.element.currentTime = Math.max(0, t - this.offset); this.onChange(); }
  play() { this.untouched = false; return this.element.play()?.catch(() => {}); }
  pause() { this.element.pause(); }
  set rate(x) { this.element.playbackRate = x; }
}

// Without a playable medium the trace still plays, by itself
class FreeClock {
  constructor(start, end) {
    Object.assign(this, { at: start, end, start, since: null, speed: 1, onChange: () => {} });
  }

  get now() {
    return this.since === null ? this.at : Math.min(this.end, this.at + ((performance.now() - this.since) / 1000) * this.speed);
  }
  get playing() {
    if (this.since !== null && this.now >= this.end) this.pause();
    return this.since !== null;
  }
  seek(t) { this.at = Math.min(Math.max(t, this.start), this.end); if (this.since !== null) this.since = performance.now(); this.onChange(); }
  play() { if (this.now >= this.end) this.at = this.start; this.since = performance.now(); this.onChange(); }
  pause() { this.at = this.now; this.since = null; this.onChange(); }
  set rate(x) { const was = this.playing; if (was) this.pause(); this.speed = x; if (was) this.play(); }
}

// The payload becomes a Blob: seekable in every browser, which a data URI in src is not
function attachMedia(medium) {
  const element = $("media");
  if (!element) return null;
  const payload = $("media-payload");
  if (payload) {
    const text = payload.textContent, comma = text.indexOf(",");
    const parts = [], size = 1 << 20; // a multiple of 4, so that pieces decode by themselves
    for (let i = comma + 1; i < text.length; i += size) parts.push(bytesOf(text.slice(i, i + size).trim()));
    element.src = URL.createObjectURL(new Blob(parts, { type: medium.mime }));
    payload.remove();
  } else if (medium.href) {
    element.src = medium.href;
  }
  return element;
}

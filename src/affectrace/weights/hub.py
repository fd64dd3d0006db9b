"""Models of the Hugging Face Hub at a pinned revision, or a local folder in their place."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from affectrace.errors import WeightsError
from affectrace.progress import Progress, ProgressEvent, silent

SAFE_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "*.tiktoken")  # no pickles unless asked for
ASK_S = 10.0  # longest wait for the Hub's answer, seconds
COMPLETE = ".affectrace-{}.json"  # in a snapshot: the files that a finished download for these patterns brought
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_directory(
    repo_id: str,
    revision: str | None = None,
    *,
    files: tuple[str, ...] = SAFE_FILES,
    progress: Progress = silent,
) -> Path:
    """A model of the Hub, or a local folder, as a folder of files.

    repo_id: "user/model", or the path of a folder (then nothing is downloaded and `revision` is not looked at).
    revision: the commit hash, 40 hex digits; a branch name would let the weights change under a result.
    files: patterns of what to fetch.

    A snapshot that was fetched completely is used without the network.

    Raises:
        WeightsError: no pinned revision; huggingface-hub is not installed; the model is not in the Hub's cache and
            cannot be downloaded.
    """
    own = Path(repo_id).expanduser()
    if own.is_dir():
        return own
    if revision is None or not _COMMIT.fullmatch(revision):
        raise WeightsError(
            f"no such folder, and a Hub model needs a pinned revision, got {revision!r}",
            where=repo_id,
            hint="give the 40-digit commit hash from the model's page (Files, History), or a local folder",
        )
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.utils import logging as hub_logging
    except ImportError:
        raise WeightsError(
            "loading from the Hugging Face Hub needs huggingface-hub, which is not installed",
            where=repo_id,
            hint="pip install 'affectrace[hub]', or give a local folder",
        ) from None
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(files)}
    marker = COMPLETE.format(hashlib.sha256("\n".join(files).encode()).hexdigest()[:8])
    kept: Path | None = None
    with contextlib.suppress(Exception):  # whatever is wrong with the cache, the download below repairs or explains it
        kept = Path(snapshot_download(repo_id, local_files_only=True, **wanted))
        if _complete(kept / marker):
            return kept
    progress(ProgressEvent("downloading", 0, None, "files", repo_id))
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it logs a warning for every retry
    try:
        HfApi().model_info(repo_id, revision=revision, timeout=ASK_S)  # never retried: no network is said at once
        found = Path(snapshot_download(repo_id, tqdm_class=_reporting(progress, repo_id), **wanted))
    except Exception as error:  # the Hub's client raises many kinds; all mean that the model is not here
        if kept is not None and any(p.is_file() for p in kept.rglob("*")):
            return kept  # put there by the Hub's own tools; the loader says what is missing
        said = str(error).strip().splitlines()
        raise WeightsError(
            f"not in the Hub's cache and cannot be downloaded ({type(error).__name__}: {said[0] if said else ''})",
            where=f"{repo_id} at {revision[:12]}",
            hint="check the name, the commit and the network (HF_ENDPOINT, HF_TOKEN), or download the files elsewhere "
            "and give their folder instead of the name",
        ) from None
    finally:
        hub_logging.set_verbosity(verbosity)
    names = sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file() and p.name[0] != ".")
    with contextlib.suppress(OSError):  # without the marker the network is asked again, nothing worse
        (found / marker).write_text(json.dumps(names), encoding="utf-8")
    progress(ProgressEvent("downloading", len(names), len(names), "files", repo_id))
    return found


def _complete(marker: Path) -> bool:
    if not marker.is_file():
        return False
    names = json.loads(marker.read_text(encoding="utf-8"))
    return bool(names) and all((marker.parent / name).is_file() for name in names)


def _reporting(progress: Progress, item: str) -> type:
    """The Hub's progress bars, silent on the terminal and reported to our hook instead."""
    from tqdm.auto import tqdm

    class Reporting(tqdm):  # type: ignore[misc,type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._unit_named = str(kwargs.get("unit", "files"))
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            unit = "bytes" if self._unit_named == "B" else "files"
            progress(ProgressEvent("downloading", self.n, self.total, unit, item))
            return None

        def close(self) -> None:
            pass

    return Reporting

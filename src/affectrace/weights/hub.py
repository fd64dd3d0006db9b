"""Weights by name: a package, a folder, a file, or a Hugging Face model at a commit.

Models of the Hub change. The newest commit at the first use of a model is therefore stored in `hub-revisions.json` in
the cache folder, reported, and recorded with each run. Remove its line, or name NAME=user/model@COMMIT, to use another.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace import weights
from affectrace.errors import AffectraceError, ConfigError, WeightsError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights.download import hash_once

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.onnx")
TUNING = "finetune.json"
"""File that `affectrace finetune` writes beside tuned weights."""
SAFE_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "*.tiktoken")  # no pickles unless asked for
ASK_S = 10.0  # timeout of a question to the Hub, seconds
COMPLETE = ".affectrace-{}.json"  # in a snapshot: the files that a finished download of these patterns fetched
REVISIONS = "hub-revisions.json"
_REPOSITORY, _COMMIT = re.compile(r"[\w-][\w.-]*/[\w.-]+"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Place:
    """Weights on this machine: their folder (or file) and their sha256."""

    path: Path
    sha256: str

    @property
    def folder(self) -> Path:
        """Their folder."""
        return self.path if self.path.is_dir() else self.path.parent

    def tuned_on(self) -> dict[str, Any] | None:
        """What `affectrace finetune` tuned these weights on, in all rounds, as in `ExtractorId` (raises WeightsError).

        {} for other weights, None if unknown.
        """
        path = self.folder / TUNING
        if not path.is_file():
            return {}
        try:
            run = configs.read_json(path)
        except AffectraceError as error:
            raise WeightsError(error.what, where=path, hint="tune the encoder again, or remove the file") from None
        if not isinstance(run, dict) or not {"encoder", "recordings"} <= run.keys():
            return None
        before = run["encoder"].get("tuned_on") or {}
        parts = ("training", "validation")
        recordings = {part: sorted({*run["recordings"][part], *before.get(part, ())}) for part in parts}
        return {"data": [*before.get("data", ()), *([run["data"]] if run.get("data") else [])], **recordings}


def find(source: str, revision: str | None = None, *, progress: Progress = silent) -> Place:
    """Weights named "package:NAME", a folder, a file, "user/model@commit", or "user/model" with `revision`.

    Raises:
        WeightsError: not here and not available; the message says what to do.
    """
    if source.startswith("package:"):
        name = source.removeprefix("package:")
        return Place(weights.directory(name, progress=progress), weights.sha256(name))
    own = Path(source).expanduser()
    if own.is_file():
        return Place(own, hash_once(own))
    if not own.is_dir() and "@" in source:
        source, revision = source.rsplit("@", 1)
    folder = hub_directory(source, revision, progress=progress)
    if not _weight_files(folder) and not own.is_dir():  # older models come without safetensors
        folder = hub_directory(source, revision, files=(*SAFE_FILES, "pytorch_model*.bin"), progress=progress)
    files = _weight_files(folder)
    if not files:
        hint = "a folder needs config.json and model.safetensors, or a .pth file"
        raise WeightsError("holds no weights", where=folder, hint=hint)
    if len(files) == 1:
        return Place(folder, hash_once(files[0]))
    lines = "".join(f"{hash_once(p)}  {p.name}\n" for p in files)
    return Place(folder, hashlib.sha256(lines.encode()).hexdigest())


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of the first suffix found, which would be loaded."""
    found = (sorted(p for p in folder.glob(pattern) if p.is_file()) for pattern in WEIGHT_FILES)
    return next(filter(None, found), [])


# ---- the Hub


def hub_directory(
    repo_id: str,
    revision: str | None = None,
    *,
    files: tuple[str, ...] = SAFE_FILES,
    progress: Progress = silent,
) -> Path:
    """A model of the Hub as a local folder, downloaded unless a complete snapshot is in the Hub's cache.

    repo_id: "user/model", or a folder, which is returned as it is. revision: commit hash, 40 hex digits.
    files: patterns of files to fetch.

    Raises:
        WeightsError: no pinned revision, or not cached and cannot be downloaded.
    """
    own = Path(repo_id).expanduser()
    if own.is_dir():
        return own
    if revision is None or not _COMMIT.fullmatch(revision):
        what = f"no such folder, and a Hub model needs a pinned revision, got {revision!r}"
        hint = "give the 40-digit commit hash from the model's page (Files, History), or a local folder"
        raise WeightsError(what, where=repo_id, hint=hint)
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(files)}
    marker = COMPLETE.format(hashlib.sha256("\n".join(files).encode()).hexdigest()[:8])
    kept: Path | None = None
    with contextlib.suppress(Exception):  # the download below repairs a broken cache, or explains it
        kept = Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True, **wanted))
        if _complete(kept / marker):
            return kept
    progress(ProgressEvent("downloading", 0, None, "files", repo_id))
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it warns of every retry
    try:
        huggingface_hub.HfApi().model_info(
            repo_id, revision=revision, timeout=ASK_S
        )  # not retried, so a missing network shows at once
        found = Path(huggingface_hub.snapshot_download(repo_id, tqdm_class=_reporting(progress, repo_id), **wanted))
    except Exception as error:  # the Hub's client raises many kinds
        if kept is not None and any(p.is_file() for p in kept.rglob("*")):
            return kept  # fetched by the Hub's own tools; the loader reports what is missing
        what = f"not in the Hub's cache and cannot be downloaded ({_summary(error)})"
        hint = (
            "check the name, the commit and the network (HF_ENDPOINT, HF_TOKEN), or give a folder instead of the name"
        )
        raise WeightsError(what, where=f"{repo_id} at {revision[:12]}", hint=hint) from None
    finally:
        hub_logging.set_verbosity(verbosity)
    names = sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file() and p.name[0] != ".")
    with contextlib.suppress(OSError):  # without the marker the network is used again
        (found / marker).write_text(json.dumps(names), encoding="utf-8")
    progress(ProgressEvent("downloading", len(names), len(names), "files", repo_id))
    return found


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _complete(marker: Path) -> bool:
    if not marker.is_file():
        return False
    names = json.loads(marker.read_text(encoding="utf-8"))
    return bool(names) and all((marker.parent / name).is_file() for name in names)


def _reporting(progress: Progress, item: str) -> type:
    """A progress bar class for the Hub that reports to our hook and prints nothing."""
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


# ---- commits


def revisions_path() -> Path:
    """The file of pinned commits."""
    return weights.cache_folder() / REVISIONS


def is_repository(source: str) -> bool:
    """Whether this names a Hub model without a commit, and no local folder or file."""
    return _REPOSITORY.fullmatch(source) is not None and not Path(source).expanduser().exists()


def commit_of(repo_id: str) -> tuple[str, bool]:
    """The pinned commit of a Hub model, and whether it was pinned just now, to the newest.

    Raises:
        WeightsError: not pinned, and the Hub cannot be asked. ConfigError: the file is damaged.
    """
    known = _read()
    if repo_id in known:
        return known[repo_id], False
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().model_info(repo_id, timeout=ASK_S).sha
    except Exception as error:  # the Hub's client raises many kinds
        what = f"the Hub cannot be asked for its commit ({_summary(error)})"
        raise WeightsError(what, where=repo_id, hint="check the network") from None
    if commit is None or not _COMMIT.fullmatch(commit):
        raise WeightsError(f"the Hub gave no commit ({commit!r})", where=repo_id, hint="name one: user/model@COMMIT")
    known = {**_read(), repo_id: commit}
    configs.write_atomic(revisions_path(), json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    return commit, True


def _read() -> dict[str, str]:
    if not revisions_path().is_file():
        return {}
    values = configs.read_json(revisions_path())
    wrong = [k for k, v in values.items() if not _COMMIT.fullmatch(str(v))] if isinstance(values, dict) else ["all"]
    if wrong:
        what = f"holds no commit for {', '.join(wrong)}"
        raise ConfigError(what, where=revisions_path(), hint="correct or remove the file")
    return {str(k): str(v) for k, v in values.items()}

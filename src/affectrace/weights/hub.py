"""Weights by what names them: a member of a package, a folder, a file, or a model of the Hugging Face Hub at a commit.

A model of the Hub moves when its owner changes it. So no name is followed silently: the commit that was newest when a
model was first wanted is kept in `hub-revisions.json` in the cache folder, told to the person, and part of what a run
records. Remove its line (or name NAME=user/model@COMMIT) to take another.
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
"""What `affectrace finetune` writes beside the weights it tuned."""
SAFE_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "*.tiktoken")  # no pickles unless asked for
ASK_S = 10.0  # longest wait for the Hub's answer, seconds
COMPLETE = ".affectrace-{}.json"  # in a snapshot: the files that a finished download for these patterns brought
REVISIONS = "hub-revisions.json"
_REPOSITORY, _COMMIT = re.compile(r"[\w-][\w.-]*/[\w.-]+"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Place:
    """Weights on this machine: their folder (or file) and the sha256 that names them."""

    path: Path
    sha256: str

    @property
    def folder(self) -> Path:
        """The folder they lie in."""
        return self.path if self.path.is_dir() else self.path.parent

    def tuned_on(self) -> dict[str, Any] | None:
        """What `affectrace finetune` tuned these weights on, as in `ExtractorId`; {} where it did not, None: not known.

        Weights that were tuned twice were tuned on the recordings of both.

        Raises:
            WeightsError: finetune.json cannot be read.
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
    """Weights named as "package:NAME", a folder, a file, "user/model@commit", or "user/model" with `revision`.

    Raises:
        WeightsError: not there and not to be had; the message says what to do.
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
        raise WeightsError(
            "holds no weights", where=folder, hint="a folder needs config.json and model.safetensors, or a .pth file"
        )
    if len(files) == 1:
        return Place(folder, hash_once(files[0]))
    lines = "".join(f"{hash_once(p)}  {p.name}\n" for p in files)
    return Place(folder, hashlib.sha256(lines.encode()).hexdigest())


def _weight_files(folder: Path) -> list[Path]:
    """All of the first kind that is there: what would be loaded."""
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


# ---- commits


def revisions_path() -> Path:
    """Where commits are written down."""
    return weights.cache_folder() / REVISIONS


def is_repository(source: str) -> bool:
    """Whether this is the name of a Hub model without a commit, and no folder or file here."""
    return _REPOSITORY.fullmatch(source) is not None and not Path(source).expanduser().exists()


def commit_of(repo_id: str) -> tuple[str, bool]:
    """The commit of a Hub model that is used on this machine, and whether the Hub was asked for it just now.

    Raises:
        WeightsError: not written down, and the Hub cannot be asked. ConfigError: the file is damaged.
    """
    known = _read()
    if repo_id in known:
        return known[repo_id], False
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise WeightsError(
            "the Hub cannot be asked for its commit: huggingface-hub is not installed",
            where=repo_id,
            hint="pip install 'affectrace[hub]'",
        ) from None
    try:
        commit = HfApi().model_info(repo_id, timeout=ASK_S).sha
    except Exception as error:  # the Hub's client raises many kinds; all mean that it did not answer
        said = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {said[0] if said else ''}"
        raise WeightsError(
            f"the Hub cannot be asked for its commit ({why})", where=repo_id, hint="check the network"
        ) from None
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
        raise ConfigError(
            f"holds no commit for {', '.join(wrong)}", where=revisions_path(), hint="mend or remove the file"
        )
    return {str(k): str(v) for k, v in values.items()}

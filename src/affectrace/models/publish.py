"""Checkpoints on the Hugging Face Hub: download and upload.

A downloaded revision is cached and needs no network afterwards. Only the files of a checkpoint are uploaded, nothing
else in its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectrace.datasets.manifest import data_of
from affectrace.errors import InputError, OutputError, UnknownNameError
from affectrace.models import checkpoint
from affectrace.models.checkpoint import MODELS
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights.hub import hub_directory

CARD = "README.md"
FILES = ("model.safetensors", "config.json", "statistics.safetensors", CARD)
"""Files of a checkpoint."""
SYNTHETIC_TAG = "synthetic-data"
"""Tag in the card of a model trained on recordings of `affectrace synth`."""
_AFF_WILD2 = re.compile(r"aff[\W_]*wild|abaw", re.IGNORECASE)
_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Pushed:
    """An uploaded checkpoint: name for `affectrace.load` ("user/model@COMMIT"), URL of its page, files sent."""

    name: str
    url: str
    files: tuple[str, ...]


def checkpoint_folder(name: str | Path, *, progress: Progress = silent) -> Path:
    """The folder of a checkpoint, given as a path or as "user/model@REVISION".

    Raises:
        InputError: the name of an architecture, which has no weights. UnknownNameError: any other name.
        WeightsError: a Hub model without its revision (the commit's 40 digits), or not available.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not isinstance(name, str) or not _REPO.fullmatch(name):
        if isinstance(name, Path) or "/" in name:
            return path
        if name in MODELS:
            hint = f"train it (affectrace train {name}), or convert the authors' checkpoint (affectrace convert)"
            raise InputError(f"{name} is a network without weights", hint=hint)
        error = UnknownNameError.of("model", name, ("zero-shot",))
        raise UnknownNameError(error.what, hint=f"{error.hint}, a checkpoint folder, or user/model@REVISION")
    repo, _, revision = name.partition("@")
    return hub_directory(repo, revision or None, progress=progress)


def push(
    folder: str | Path, repo_id: str, *, private: bool = True, message: str = "", progress: Progress = silent
) -> Pushed:
    """Upload a checkpoint folder, checked first, to the repository "user/model"; it is created where missing.

    private: visibility of a new repository (an existing one keeps its own). message: of the commit.

    Raises:
        FormatError, ConfigError: not a checkpoint.
        OutputError: invalid name, no permission or no network; or weights trained on synthetic recordings whose config,
            card or repository name does not say so, or says Aff-Wild2.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise OutputError("is not a repository name", where=repo_id, hint="give user/model")
    found = checkpoint.load(Path(folder))
    _check_claims(Path(folder), found.extra, repo_id)
    files = tuple(f for f in FILES if (Path(folder) / f).is_file())
    from huggingface_hub import HfApi

    api = HfApi()
    progress(ProgressEvent("uploading", 0, len(files), "files", repo_id))
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            allow_patterns=list(files),
            commit_message=message or f"{found.name} by affectrace ({found.id})",
        )
    except Exception as error:  # the Hub's client raises many kinds; all mean that nothing was uploaded
        what = f"cannot be uploaded ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        hint = "log in with `hf auth login` or set HF_TOKEN, and check the name and the network"
        raise OutputError(what, where=repo_id, hint=hint) from None
    progress(ProgressEvent("uploading", len(files), len(files), "files", repo_id))
    return Pushed(f"{repo_id}@{done.oid}", str(done.commit_url), files)


def _check_claims(folder: Path, about: Mapping[str, Any], repo_id: str) -> None:
    """Refuse weights trained on synthetic recordings that are labelled as anything else (raises OutputError)."""
    if not data_of(about).get("synthetic"):
        return
    written, card = about["data"], folder / CARD
    marked = isinstance(written, Mapping) and written.get("synthetic")  # checkpoints from before data sets were marked
    head = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0] if card.is_file() else ""
    for wrong, what, hint in (
        (not marked, "config.json does not say so", "train it again: the data set is then named"),
        (_AFF_WILD2.search(repo_id), f"the repository is called {repo_id}", "give it another name"),
        (not card.is_file(), f"there is no {CARD}", "restore the card that training wrote"),
        (_AFF_WILD2.search(head), f"the head of its {CARD} names Aff-Wild2", "correct the card"),
        (SYNTHETIC_TAG not in head, f"the head of its {CARD} has no tag {SYNTHETIC_TAG}", "add it to the card"),
    ):
        if wrong:
            what = f"was trained on synthetic recordings (affectrace synth), but {what}"
            raise OutputError(what, where=folder, hint=hint)

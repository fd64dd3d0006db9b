"""Checkpoints of ours on the Hugging Face Hub, by its own library: `user/model@REVISION` as a folder, and back.

What is loaded stays on this machine: a revision that was fetched once needs no network. What is uploaded is what a
checkpoint consists of, and nothing else that lies beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectrace.datasets.manifest import data_of
from affectrace.errors import InputError, OutputError, WeightsError
from affectrace.models import checkpoint
from affectrace.models.checkpoint import MODELS
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights.hub import hub_directory

CARD = "README.md"
FILES = ("model.safetensors", "config.json", "statistics.safetensors", CARD)
"""What a checkpoint consists of."""
SYNTHETIC_TAG = "synthetic-data"
"""Tag in the card of a model that was trained on recordings that `affectrace synth` made."""
_AFF_WILD2 = re.compile(r"aff[\W_]*wild|abaw", re.IGNORECASE)
_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Pushed:
    """An uploaded checkpoint. name: what `affectrace.load` takes, "user/model@COMMIT". url: its page. files: sent."""

    name: str
    url: str
    files: tuple[str, ...]


def checkpoint_folder(name: str | Path, *, progress: Progress = silent) -> Path | None:
    """The folder of a checkpoint named by its path, or as "user/model@REVISION"; None for what is neither.

    Raises:
        InputError: the name of a network, which has no weights yet.
        WeightsError: a model of the Hub without its revision (the commit's 40 digits), or that cannot be had.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not isinstance(name, str) or not _REPO.fullmatch(name):
        if isinstance(name, Path) or "/" in name:
            return path
        if name in MODELS:
            raise InputError(
                f"{name} is a network without weights",
                hint=f"train it (affectrace train {name}) or convert the authors' checkpoint (affectrace convert), and "
                "name the folder",
            )
        return None
    repo, _, revision = name.partition("@")
    return hub_directory(repo, revision or None, progress=progress)


def push(
    folder: str | Path, repo_id: str, *, private: bool = True, message: str = "", progress: Progress = silent
) -> Pushed:
    """Upload a checkpoint; the repository is made where there is none.

    Args:
        folder: what `affectrace train` or `convert` wrote; read and checked before anything is sent.
        repo_id: "user/model".
        private: whether a new repository is (a present one stays as it is).
        message: of the commit.

    Raises:
        FormatError, ConfigError: not a checkpoint of ours.
        OutputError: no such name, not allowed, or no network; or the weights were trained on synthetic recordings, and
            their config, their card or the name of the repository says that it was Aff-Wild2, or nothing.
        WeightsError: huggingface-hub is not installed.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise OutputError("is not the name of a repository", where=repo_id, hint="give user/model")
    found = checkpoint.load(Path(folder))
    _check_claims(Path(folder), found.extra, repo_id)
    files = tuple(f for f in FILES if (Path(folder) / f).is_file())
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise WeightsError(
            "sharing needs huggingface-hub, which is not installed", hint="pip install 'affectrace[hub]'"
        ) from None
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
    except Exception as error:  # the Hub's client raises many kinds; all mean that nothing was shared
        said = str(error).strip().splitlines()
        raise OutputError(
            f"cannot be uploaded ({type(error).__name__}: {said[0] if said else ''})",
            where=repo_id,
            hint="log in with `hf auth login` or set HF_TOKEN, and check the name and the network",
        ) from None
    progress(ProgressEvent("uploading", len(files), len(files), "files", repo_id))
    return Pushed(f"{repo_id}@{done.oid}", str(done.commit_url), files)


def _check_claims(folder: Path, about: Mapping[str, Any], repo_id: str) -> None:
    """See that weights trained on synthetic recordings are called nothing else (raises OutputError)."""
    if not data_of(about).get("synthetic"):
        return
    written, card = about["data"], folder / CARD
    marked = isinstance(written, Mapping) and written.get("synthetic")  # not before data sets were marked
    head = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0] if card.is_file() else ""
    for wrong, what, hint in (
        (not marked, "config.json does not say so", "train it again: its data set then bears its own name"),
        (_AFF_WILD2.search(repo_id), f"the repository is called {repo_id}", "give it another name"),
        (not card.is_file(), f"no {CARD} says so", "put the card back that training wrote"),
        (_AFF_WILD2.search(head), f"the head of its {CARD} calls them Aff-Wild2", "say in the card what they are"),
        (SYNTHETIC_TAG not in head, f"the head of its {CARD} has no tag {SYNTHETIC_TAG}", "say it in the card"),
    ):
        if wrong:
            what = f"was trained on synthetic recordings (affectrace synth), and {what}"
            raise OutputError(what, where=folder, hint=hint)

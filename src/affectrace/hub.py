"""Checkpoints of ours on the Hugging Face Hub, by its own library: `user/model@REVISION` as a folder, and back.

What is loaded stays on this machine: a revision that was fetched once needs no network. What is uploaded is what a
checkpoint consists of, and nothing else that lies beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from affectrace.errors import OutputError, WeightsError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights_hub import hub_directory

CARD = "README.md"
FILES = ("model.safetensors", "config.json", "statistics.safetensors", CARD)
"""What a checkpoint consists of."""
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
        WeightsError: a model of the Hub without its revision (the commit's 40 digits), or that cannot be had.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not isinstance(name, str) or not _REPO.fullmatch(name):
        return path if isinstance(name, Path) or "/" in name else None
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
        OutputError: no such name, not allowed, or no network.
        WeightsError: huggingface-hub is not installed.
    """
    from affectrace.models import checkpoint

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise OutputError("is not the name of a repository", where=repo_id, hint="give user/model")
    found = checkpoint.load(Path(folder))
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

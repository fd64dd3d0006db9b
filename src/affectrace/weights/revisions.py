"""Commits of Hub models for which the registry knows none: asked of the Hub once, written down, and used from then on.

A model of the Hub moves when its owner changes it. So no name is followed silently: the commit that was newest when a
model was first wanted is kept in `hub-revisions.json` in the cache folder, told to the person, and part of what a run
records. Remove its line (or name NAME=user/model@COMMIT) to take another.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from affectrace import config, weights
from affectrace.errors import ConfigError, WeightsError
from affectrace.weights.hub import ASK_S

FILE = "hub-revisions.json"
_REPOSITORY, _COMMIT = re.compile(r"[\w-][\w.-]*/[\w.-]+"), re.compile(r"[0-9a-f]{40}")


def path() -> Path:
    """Where commits are written down."""
    return weights.cache_folder() / FILE


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
    write(repo_id, commit)
    return commit, True


def write(repo_id: str, commit: str) -> None:
    """Write a commit down (raises OutputError)."""
    known = {**_read(), repo_id: commit}
    config.write_atomic(path(), json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def _read() -> dict[str, str]:
    if not path().is_file():
        return {}
    values = config.read_json(path())
    wrong = [k for k, v in values.items() if not _COMMIT.fullmatch(str(v))] if isinstance(values, dict) else ["all"]
    if wrong:
        raise ConfigError(f"holds no commit for {', '.join(wrong)}", where=path(), hint="mend or remove the file")
    return {str(k): str(v) for k, v in values.items()}

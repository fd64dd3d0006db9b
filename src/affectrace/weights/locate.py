"""Where an encoder's weights are: a folder, a file, a Hub model at a commit, a member of a package; and their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace import weights
from affectrace.errors import AffectraceError, WeightsError
from affectrace.progress import Progress, silent
from affectrace.weights.hub import SAFE_FILES

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.onnx")
TUNING = "finetune.json"
"""What `affectrace finetune` writes beside the weights it tuned."""


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
        return Place(own, _sha256((own,)))
    if not own.is_dir() and "@" in source:
        source, revision = source.rsplit("@", 1)
    folder = weights.hub_directory(source, revision, progress=progress)
    if not _weight_files(folder) and not own.is_dir():  # older models come without safetensors
        folder = weights.hub_directory(source, revision, files=(*SAFE_FILES, "pytorch_model*.bin"), progress=progress)
    files = _weight_files(folder)
    if not files:
        raise WeightsError(
            "holds no weights", where=folder, hint="a folder needs config.json and model.safetensors, or a .pth file"
        )
    return Place(folder, _sha256(files))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """All of the first kind that is there: what would be loaded."""
    for pattern in WEIGHT_FILES:
        found = sorted(p for p in folder.glob(pattern) if p.is_file())
        if found:
            return tuple(found)
    return ()


def _sha256(files: tuple[Path, ...]) -> str:
    """Hash of a file, or of the lines `hash  name` of several."""
    hashes = [_hash_once(p, p.stat().st_mtime_ns, p.stat().st_size) for p in files]
    if len(files) == 1:
        return hashes[0]
    lines = "".join(f"{h}  {p.name}\n" for h, p in zip(hashes, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


@lru_cache(maxsize=64)
def _hash_once(path: Path, changed_ns: int, n_bytes: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

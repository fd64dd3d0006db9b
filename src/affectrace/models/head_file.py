"""Head files of the default model's parts: safetensors with their configuration. Without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from affectrace import config as configs
from affectrace.config import Config
from affectrace.errors import ConfigError, FormatError

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class HeadFile(Generic[C]):
    """A kind of head file. name: of training script and shipped file. format: in the metadata. tensors: required."""

    name: str
    format: str
    config: type[C]
    tensors: tuple[str, ...]

    @property
    def shipped(self) -> Path:
        """The file that comes with the package."""
        return Path(str(resources.files("affectrace.models") / "weights" / f"{self.name}.safetensors"))

    def read(self, path: Path) -> tuple[C, dict[str, NDArray[np.float32]]]:
        """Configuration and float32 tensors of a file (raises FormatError)."""
        hint = f"install the package again, or write the file with training/{self.name}.py"
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if metadata.get("format") != self.format or not set(self.tensors) <= tensors.keys():
                raise FormatError(f"is not a head file of the format {self.format}", where=path, hint=hint)
            return configs.from_dict(self.config, json.loads(metadata["config"]), where=path), tensors
        except (OSError, SafetensorError, ConfigError, KeyError, ValueError) as error:
            raise FormatError(f"cannot be read ({error})", where=path, hint=hint) from None

    def metadata(self, config: C) -> dict[str, str]:
        """The safetensors metadata of a file."""
        return {"format": self.format, "config": json.dumps(configs.to_dict(config), sort_keys=True)}

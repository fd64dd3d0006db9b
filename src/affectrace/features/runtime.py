"""What an encoder runs on: device and number format; and transformers' loader, silent and strict."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from affectrace.errors import InputError, WeightsError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """device: "cpu", "cuda", "cuda:1", ... precision: of the multiplications; results are float32 either way."""

    device: str = "cpu"
    precision: Precision = "float32"

    @property
    def pictures_at_once(self) -> int:
        """Pictures in a batch: a CPU core is as fast with 8 as with more, a GPU wants more to do."""
        return 8 if self.device == "cpu" else 64

    @property
    def chunks_at_once(self) -> int:
        """Chunks of sound in a batch: a CPU core is as fast with one as with four."""
        return 1 if self.device == "cpu" else 8

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Compute:
        """The machine's best: CUDA where it is there, bfloat16 where CUDA has it (a CPU is seldom faster with it).

        Raises:
            InputError: the device is not there, or another precision.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"no device '{device}' on this machine", hint="use --device cpu, or auto")
        if precision == "auto":
            precision = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"unknown precision '{precision}'", hint="use auto, float32 or bfloat16")
        return cls(device, precision)  # type: ignore[arg-type]

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it was chosen."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)


def pretrained(
    kind: Any,
    folder: Path | None,
    *,
    config: Any = None,
    state_dict: Mapping[str, Tensor] | None = None,
    where: Path | None = None,
    **overrides: Any,
) -> nn.Module:
    """A transformers model in float32 from a folder, or from a config and a state dict; nothing left at random.

    Raises:
        WeightsError: unreadable, or a tensor is missing or has another shape.
    """
    place = where or folder
    given: dict[str, Any] = {"state_dict": dict(state_dict)} if state_dict is not None else {"local_files_only": True}
    if config is not None:
        given["config"] = config
    try:
        with silent_transformers():
            network, info = kind.from_pretrained(
                None if folder is None else str(folder),
                dtype=torch.float32,
                output_loading_info=True,
                **given,
                **overrides,
            )
    except pickle.UnpicklingError:  # nothing was executed; what it says advises to execute it
        raise WeightsError(
            "is damaged, or a pickle with more than tensors in it, which is never executed",
            where=place,
            hint="get the weights as model.safetensors",
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        said = str(error).strip().splitlines()
        raise WeightsError(
            f"cannot be loaded as {kind.__name__} ({said[0] if said else type(error).__name__})",
            where=place,
            hint="check config.json and the weights beside it",
        ) from None
    lacking = sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", ()))
    if lacking:
        raise WeightsError(
            f"lacks {len(lacking)} tensors of {kind.__name__} ({lacking[0]}, ...)",
            where=place,
            hint="check the weights",
        )
    return network.eval().requires_grad_(False)


def load_transformers(wanted_by: str) -> Any:
    """transformers, which is an extra (raises WeightsError: not installed)."""
    try:
        import transformers
    except ImportError:
        raise WeightsError(
            f"'{wanted_by}' needs transformers, which is not installed", hint="pip install 'affectrace[hub]'"
        ) from None
    return transformers


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """transformers neither draws bars nor warns of heads that are not loaded."""
    logging = load_transformers("an encoder").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

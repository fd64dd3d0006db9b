"""What encoders run on, and the one way in which weights are read: tensors, state dicts, transformers' folders."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import load_file
from torch import Tensor, nn

from affectrace.errors import AffectraceError, FormatError, InputError, WeightsError

Precision = Literal["float32", "bfloat16"]
SHOWN = 12  # mistakes that one line names


@dataclass(frozen=True)
class Compute:
    """device: "cpu", "cuda", "cuda:1", ... precision: of the multiplications; results are float32 either way."""

    device: str = "cpu"
    precision: Precision = "float32"

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Compute:
        """The machine's best: CUDA where it is there, bfloat16 where CUDA has it (a CPU is seldom faster with it)."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"no device '{device}' on this machine", hint="use --device cpu, or auto")
        if precision == "auto":
            precision = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"unknown precision '{precision}'", hint="use auto, float32 or bfloat16")
        return cls(device, precision)  # type: ignore[arg-type]

    def autocast(self) -> torch.autocast:
        """bfloat16 where it was chosen."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16")


# ---- reading


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a JSON file beside weights; {} where there is none (raises WeightsError)."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"cannot be read ({error})", where=path, hint="fetch the model again") from None
    return fields


def read_tensors(
    path: Path,
    error: type[AffectraceError] = FormatError,
    hint: str = "give a .safetensors file, or a torch file that holds tensors only",
) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or of a torch file; nothing else in it is ever executed.

    Raises:
        error: damaged, or not a plain mapping of names to tensors.
    """
    # beside tensors a training script's own file may hold numpy's numbers, which do no more than they say
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")]
    numbers: list[Any] = [multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            with torch.serialization.safe_globals(numbers):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:  # torch, pickle, zip and safetensors each raise their own
        reason = str(failure).strip().split("\n")[0] or type(failure).__name__
        if isinstance(failure, pickle.UnpicklingError) and "Weights only" in str(failure):
            found = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|operand|class):?) (\S+)", str(failure))
            named = f" ({found[1].rstrip('.,')})" if found else ""
            reason = f"it holds Python objects beside tensors{named}: loading them could run code, so nothing was"
        raise error(f"cannot be read as a weights file ({reason})", where=path, hint=hint) from None
    for key in ("state_dict", "model_state_dict", "model"):  # as training scripts wrap it
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise error("holds no mapping of names to tensors", where=path, hint="save model.state_dict()")
    return {str(name): tensor for name, tensor in state.items()}


def load_strict(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    where: str | Path | None,
    what: str,
    hint: str,
    assign: bool = False,
    mistakes: Iterable[str] = (),
    name: Callable[[str], str] = str,
    error: type[AffectraceError] = FormatError,
) -> None:
    """Put tensors into a model; all that is missing, unknown or misshapen is named, and then nothing is changed.

    Args:
        what, hint: of the message. mistakes: found before. name: our name of a tensor -> what messages call it.
        assign: take the tensors themselves instead of copying their values.

    Raises:
        error: they do not fit.
    """
    own = model.state_dict()
    wrong = [*mistakes]
    wrong += [f"{name(n)} is missing" for n in own if n not in tensors]
    wrong += [f"{name(n)} has no place" for n in tensors if n not in own]
    wrong += [
        f"{name(n)} is {tuple(tensor.shape)}, not {tuple(own[n].shape)}"
        for n, tensor in tensors.items()
        if n in own and tensor.shape != own[n].shape
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise error(f"{what}: {', '.join(wrong[:SHOWN])}{more}", where=where, hint=hint)
    model.load_state_dict(tensors, assign=assign)


def pretrained(kind: Any, folder: Path | None, *, where: Path | None = None, **given: Any) -> nn.Module:
    """A transformers model in float32 from a folder, or from `config` and `state_dict`; nothing left at random.

    Raises:
        WeightsError: unreadable, or a tensor is missing or has another shape.
    """
    place = where or folder
    if folder is not None:
        given["local_files_only"] = True
    try:
        with silent_transformers():
            network, info = kind.from_pretrained(
                None if folder is None else str(folder), dtype=torch.float32, output_loading_info=True, **given
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


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """transformers neither draws bars nor warns of heads that are not loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

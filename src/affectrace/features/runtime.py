"""Reading of tensors, state dicts and transformers models."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import load_file
from torch import Tensor, nn

from affectrace.errors import AffectraceError, FormatError, WeightsError, listing

_UNWRAPPED = ("state_dict", "model_state_dict", "model")  # keys under which training scripts put the state dict
_FORBIDDEN = re.compile(r"(?:GLOBAL|[Uu]nsupported (?:global|operand|class):?) (\S+)")


def read_fields(path: Path) -> dict[str, Any]:
    """The object in a JSON file beside weights, {} if there is no file (raises WeightsError)."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
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
    """Named tensors of a .safetensors or torch file. Code in the file is never executed.

    Raises:
        error: damaged, or not a mapping from names to tensors.
    """
    # training scripts also store numpy scalars, which are harmless
    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")]
    scalars: list[Any] = [multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            with (
                torch.serialization.safe_globals(scalars),
                warnings.catch_warnings(category=UserWarning, action="ignore"),
            ):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:  # torch, pickle, zip and safetensors each raise their own
        reason = _first_line(failure)
        if isinstance(failure, pickle.UnpicklingError) and "Weights only" in str(failure):
            found = _FORBIDDEN.search(str(failure))
            what = f" ({found[1].rstrip('.,')})" if found else ""
            reason = f"it holds Python objects beside tensors{what}, which could run code, and was not loaded"
        raise error(f"cannot be read as a weights file ({reason})", where=path, hint=hint) from None
    for key in _UNWRAPPED:
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
    hint: str = "name other weights",
    assign: bool = False,
    mistakes: Iterable[str] = (),
    name: Callable[[str], str] = str,
    error: type[AffectraceError] = FormatError,
) -> None:
    """Load a state dict, or name all missing, unexpected and misshapen tensors and change nothing.

    Args:
        what, hint: of the message. mistakes: found before. name: our name of a tensor -> its name in messages.
        assign: use the given tensors instead of copying their values.

    Raises:
        error: the tensors do not fit the model.
    """
    own = model.state_dict()
    wrong = [*mistakes]
    wrong += [f"{name(n)} is missing" for n in own if n not in tensors]
    wrong += [f"{name(n)} is unexpected" for n in tensors if n not in own]
    wrong += [
        f"{name(n)} is {tuple(tensor.shape)}, not {tuple(own[n].shape)}"
        for n, tensor in tensors.items()
        if n in own and tensor.shape != own[n].shape
    ]
    if wrong:
        raise error(f"{what}: {listing(wrong)}", where=where, hint=hint)
    model.load_state_dict(tensors, assign=assign)


def pretrained(kind: Any, folder: Path | None, *, where: Path | None = None, **given: Any) -> Any:
    """A transformers model in float32 from a folder, or from `config` and `state_dict`; no weight stays random.

    Raises:
        WeightsError: unreadable, or a tensor is missing or misshapen.
    """
    where, hint = where or folder, "check config.json and the weights beside it"
    if folder is not None:
        given["local_files_only"] = True
    source = None if folder is None else str(folder)
    try:
        with silent_transformers():
            network, info = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **given)
    except pickle.UnpicklingError:  # its own message advises to execute the file
        what = "is damaged, or a pickle with more than tensors in it, which is never executed"
        raise WeightsError(what, where=where, hint="get the weights as model.safetensors") from None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"cannot be loaded as {kind.__name__} ({_first_line(error)})"
        raise WeightsError(what, where=where, hint=hint) from None
    if lacking := [*sorted(info["missing_keys"]), *map(str, info.get("mismatched_keys", ()))]:
        what = f"lacks {len(lacking)} tensors of {kind.__name__} ({lacking[0]}, ...)"
        raise WeightsError(what, where=where, hint=hint)
    return network.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and warnings, and torch's about the files it reads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

"""Device and precision of networks. Does not import torch, which extractors in other runtimes do not need."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from affectrace.errors import InputError, optional_packages

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Compute:
    """device: "cpu", "cuda", "cuda:1", ... precision: of multiplications; results are float32 either way."""

    device: str = "cpu"
    precision: Precision = "float32"

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Compute:
        """auto: CUDA if available, with bfloat16 if the GPU supports it (raises InputError: no such device)."""
        if device == "auto" and find_spec("torch") is None:
            device = "cpu"
        if device != "cpu":
            with optional_packages(f"device '{device}'"):
                import torch
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            try:
                found = torch.device(device)
            except RuntimeError:
                raise InputError(f"unknown device '{device}'", hint="use --device cpu, cuda or auto") from None
            if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
                raise InputError(f"no device '{device}' on this machine", hint="use --device cpu, or auto")
        if precision == "auto":
            precision = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
        return cls(device, precision)  # type: ignore[arg-type]

    def autocast(self) -> torch.autocast:
        """bfloat16 if chosen."""
        import torch

        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16")

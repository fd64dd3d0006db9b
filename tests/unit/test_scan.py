"""Every form of the selective scan gives the reference's values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from affectrace.errors import InputError, UnknownNameError
from affectrace.models.ops import scan, scan_cpu
from affectrace.models.ops.scan import choose_form, selective_scan, selective_scan_ref

SMALL_BLOCKS = {"SEGMENT_STEPS": 3, "STEP_ELEMENTS": 2 * 4 * 3 * 2}  # 3 steps x 2 segments at B 2, D 4, N 3


def arguments(
    b: int, t: int, d: int, n: int, *, kind: Any = torch.float64, seed: int = 0, skip: bool = True, state: bool = True
) -> dict[str, Tensor | None]:
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(kind)

    return {
        "u": normal(b, t, d),
        "dt": torch.nn.functional.softplus(normal(b, t, d)),
        "A": -torch.exp(normal(d, n)),
        "B": normal(b, t, n),
        "C": normal(b, t, n),
        "D": normal(d) if skip else None,
        "h0": normal(b, d, n) if state else None,
    }


def double(given: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {k: None if v is None else v.double() for k, v in given.items()}


def values_and_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], given: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    leaves = {k: v.clone().requires_grad_() for k, v in given.items() if v is not None}
    y, h = function(**{k: leaves.get(k) for k in given})
    gen = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=gen, dtype=torch.float64).to(x) for x in (y, h)]
    gradients = torch.autograd.grad([y, h], list(leaves.values()), weights)
    return {"y": y.detach(), "h": h.detach()} | {f"d{k}": g for k, g in zip(leaves, gradients)}


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        scale = value.abs().max().clamp_min(1.0).item()
        assert torch.isfinite(found[name]).all(), name
        assert (found[name].double() - value.double()).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("skip,state", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    ("t", "sizes"),
    # the segment length is 16, the Triton chunk as well
    [*((t, {}) for t in (1, 2, 15, 16, 17, 33, 100)), *((t, SMALL_BLOCKS) for t in (1, 5, 6, 7, 12, 13, 40))],
)
def test_chunked_equals_plain_at_any_length(
    t: int, sizes: dict[str, int], skip: bool, state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(scan_cpu, name, value)
    given = arguments(2, t, 4, 3, seed=t, skip=skip, state=state)
    truth = values_and_gradients(selective_scan_ref, given)
    assert_same(values_and_gradients(lambda **k: selective_scan(**k, form="chunked"), given), truth, 1e-12)


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_gradients_are_those_of_finite_differences(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cpu, "SEGMENT_STEPS", 3)
    given = [x.requires_grad_() for x in arguments(1, 7, 2, 2).values() if x is not None]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, form=form), given)


def test_float32_stays_close_to_the_float64_truth() -> None:
    given = arguments(2, 500, 16, 8, kind=torch.float32)
    truth = values_and_gradients(selective_scan_ref, double(given))
    assert_same(values_and_gradients(lambda **k: selective_scan(**k, form="chunked"), given), truth, 2e-6)


def test_bfloat16_costs_only_the_rounding_of_the_results() -> None:
    given = arguments(2, 200, 8, 4, kind=torch.bfloat16)
    truth = values_and_gradients(selective_scan_ref, {k: None if v is None else v.float() for k, v in given.items()})
    for form in ("plain", "chunked"):
        found = values_and_gradients(lambda form=form, **k: selective_scan(**k, form=form), given)
        assert found["y"].dtype == torch.bfloat16
        assert found["h"].dtype == torch.float32
        assert_same({k: found[k] for k in ("y", "h")}, {k: truth[k] for k in ("y", "h")}, 2**-8)
    assert_same(found, truth, 2**-7)  # the chunked form's gradients


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-4, 1e3, 1e10, 1e30])
def test_extreme_step_sizes(scale: float) -> None:
    given = arguments(1, 50, 3, 2)
    given["dt"] = torch.rand(1, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale
    given["u"] = given["u"] / max(scale, 1.0)
    truth = values_and_gradients(selective_scan_ref, given)
    assert_same(values_and_gradients(lambda **k: selective_scan(**k, form="chunked"), given), truth, 1e-11)


def test_inputs_and_incoming_gradients_are_left_alone() -> None:
    given = {k: v.requires_grad_() for k, v in arguments(1, 20, 3, 1).items()}
    copies = {k: v.detach().clone() for k, v in given.items()}
    y, h = selective_scan(**given, form="chunked")
    weights = torch.ones_like(y), torch.ones_like(h)
    torch.autograd.grad([y, h], list(given.values()), weights)
    assert all(torch.equal(given[k], copies[k]) for k in given)
    assert all(bool((w == 1).all()) for w in weights)


def test_memory_kept_for_the_backward_pass_is_a_small_multiple_of_the_input() -> None:
    given = {k: v.requires_grad_() for k, v in arguments(1, 16_000, 32, 8, kind=torch.float32).items()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        selective_scan(**given, form="chunked")
    inputs = sum(x.nbytes for x in given.values())
    assert sum(x.nbytes for x in kept.values()) <= 1.5 * inputs  # the inputs, and a state every 16 steps
    full = 16_000 * 32 * 8 * 4
    assert sum(x.nbytes for x in kept.values()) < full


def test_form_is_chosen_by_length_and_unknown_forms_are_refused() -> None:
    assert choose_form(torch.zeros(1, 1, 4)) == "plain"
    assert choose_form(torch.zeros(1, 100, 4)) == "chunked"
    with pytest.raises(UnknownNameError, match="did you mean 'chunked'"):
        selective_scan(**arguments(1, 2, 2, 2), form="chunk")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs that package, a CUDA tensor and no initial state"):
        selective_scan(**arguments(1, 2, 2, 2), form="mamba_ssm")


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set before triton is imported: in a process of its own


def test_triton_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed: the fused GPU form cannot be interpreted here")
    command = [
        sys.executable,
        *["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-k", "interpreted"],
        __file__,
    ]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_in_the_interpreter")
@pytest.mark.parametrize("b,t,d,n,skip", [(2, 1, 4, 3, True), (1, 17, 17, 1, False), (2, 33, 5, 4, True)])
def test_interpreted_triton_equals_plain(b: int, t: int, d: int, n: int, skip: bool) -> None:
    for kind, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        given = arguments(b, t, d, n, kind=kind, seed=t, skip=skip)
        truth = values_and_gradients(selective_scan_ref, double(given))
        assert_same(values_and_gradients(lambda **k: selective_scan(**k, form="triton"), given), truth, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["triton", "mamba_ssm"])
def test_gpu_forms_equal_plain(form: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not scan.has_module(form):
        pytest.skip(f"{form} is not installed")
    given = arguments(2, 1000, 256, 8, kind=torch.float32, state=form == "triton")
    truth = values_and_gradients(selective_scan_ref, double(given))
    on_gpu = {k: None if v is None else v.cuda() for k, v in given.items()}
    if form == "mamba_ssm":  # has no gradient through the last state, and says so
        y, _ = selective_scan(**on_gpu, form=form)
        torch.testing.assert_close(y.cpu().double(), truth["y"], atol=1e-4, rtol=1e-4)
    else:
        found = values_and_gradients(lambda **k: selective_scan(**k, form=form), on_gpu)
        assert_same({k: v.cpu() for k, v in found.items()}, truth, 1e-5)

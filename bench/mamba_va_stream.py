"""Mamba-VA frame by frame on one CPU core: time, deviation by precision, and memory.

    python bench/mamba_va_stream.py            prints the tables and writes docs/benchmarks/mamba-va-stream.md
    python bench/mamba_va_stream.py --million  also .tiny() over a million frames, one at a time (about 15 minutes)

Weights are random (the paper's size, Mamba's initialization). The deviation of the output is due to rounding and given
with the standard deviation of the output. Input frames are a random walk, which changes slowly, like video features.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from affectrace.models.fast import for_inference
from affectrace.models.mamba_va import MambaVA, MambaVAConfig

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "mamba-va-stream.md"


def state_bytes(state: object) -> int:
    """Bytes a state's tensors hold."""
    return sum(x.nbytes for x in tree_leaves(state) if x is not None)


def peak_mb() -> float:
    """Peak memory of this process since it began, MB. (ru_maxrss would count the parent's as well.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


def frames(n: int, width: int) -> Tensor:
    """(1, n, width), standardized, changing slowly."""
    steps = 0.2 * torch.randn(1, n, width)
    steps[:, 0] = torch.randn(width)
    decay = 0.98
    out = [steps[:, 0]]
    for t in range(1, n):
        out.append(decay * out[-1] + steps[:, t])
    return torch.stack(out, 1)


def stream(model: MambaVA, x: Tensor) -> tuple[Tensor, list[float], set[int]]:
    """Outputs, seconds of each frame, and the sizes the state had."""
    state, ys, seconds, sizes = None, [], [], set()
    for t in range(x.shape[1]):
        start = time.perf_counter()
        y, state = model({"visual": x[:, t : t + 1]}, state=state)
        seconds.append(time.perf_counter() - start)
        ys.append(y)
        sizes.add(state_bytes(state))
    return torch.cat(ys, 1), seconds, sizes


def full_size(n_frames: int) -> list[str]:
    """Table for the paper's size."""
    torch.manual_seed(0)
    model = MambaVA(MambaVAConfig.paper()).eval()
    x = frames(n_frames, 1024)
    truth, _ = model({"visual": x})
    rows = []
    runners = [("as trained", model)] + [(p, for_inference(model, p)) for p in ("float32", "bfloat16", "int8")]  # type: ignore[arg-type]
    for name, runner in runners:
        short = name == "as trained"  # recomputes its weight norm in every frame: a few frames suffice
        y, seconds, sizes = stream(runner, x[:, :50] if short else x)
        change = (y - truth[:, : y.shape[1]]).abs()
        ms = sorted(s * 1e3 for s in seconds[5:])
        rows.append(
            f"| {name} | {ms[0]:.1f} | {statistics.median(ms):.1f} | {ms[int(0.99 * len(ms))]:.1f} | "
            f"{change.max():.1e} | {change.mean():.1e} | {max(sizes):,}{'' if len(sizes) == 1 else ' (varies)'} |"
        )
    return [
        f"The paper's size (67.2 M parameters), {n_frames} frames, one at a time; standard deviation of outputs "
        f"{truth.std():.3f}:",
        "",
        "| precision | minimum, ms | median, ms | 99th percentile, ms | largest deviation | mean deviation "
        "| state, bytes |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "Deviations are from processing the whole sequence at once in float32.",
        "",
    ]


def million(n_frames: int = 1_000_000) -> list[str]:
    """.tiny() over a million frames, one at a time."""
    torch.manual_seed(0)
    model = for_inference(MambaVA(MambaVAConfig.tiny()))
    x = frames(1000, 32)
    state, start, sizes = None, time.perf_counter(), set()
    early = 0.0
    for t in range(n_frames):
        _, state = model({"visual": x[:, t % 1000][:, None]}, state=state)
        if t % 10_000 == 9_999:
            sizes.add(state_bytes(state))
            early = early or peak_mb()
    took = time.perf_counter() - start
    held = ", ".join(f"{size:,}" for size in sorted(sizes))
    return [
        f"`.tiny()` over {n_frames:,} frames, one at a time: {took / n_frames * 1e3:.2f} ms per frame, state {held}",
        f"bytes throughout, peak memory {early:.0f} MB after 10,000 frames and {peak_mb():.0f} MB at the end.",
        "",
    ]


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000, help="frames at the paper's size")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python bench/mamba_va_stream.py --frames {args.frames}" + (" --million" if args.million else "")
    head = ["# Mamba-VA, frame by frame", "", f"`{command}`, torch {torch.__version__}, one CPU core.", ""]
    text = "\n".join([*head, *(million() if args.million else []), *full_size(args.frames)])
    print(text)
    if not args.no_write:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

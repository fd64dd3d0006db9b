"""Time and memory of the selective scan on a CPU: ours, the plain recurrence, and mambapy's pscan.

    python bench/scan.py                  prints the tables and writes docs/benchmarks/scan.md
    python bench/scan.py --seconds 20     quicker, rougher

All implementations run alternately on the same tensors, and the fastest round counts, so that the ratios do not depend
on other load. mambapy (pip install mambapy) is skipped if it is not installed. Memory is the increase in peak memory of
a new process during one forward and backward pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from affectrace.models.ops.scan import selective_scan, selective_scan_ref

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "scan.md"
SIZE = (4, 1000, 256, 8)  # B, T, D, N
LONG = (1, 16_000, 256, 8)
Scan = Callable[..., Tensor]


def ours(*x: Tensor) -> Tensor:
    """The chunked form."""
    return selective_scan(*x, form="chunked")[0]


def plain(*x: Tensor) -> Tensor:
    """selective_scan_ref: inputs split into steps once."""
    return selective_scan_ref(*x)[0]


def indexed(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence as it is usually written, every step indexing the inputs."""
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(ys, 1) + D * u


def pscan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mambapy's parallel scan, called as its Mamba block calls it."""
    from mambapy.pscan import pscan as scan

    states = scan(torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None])
    return (states @ C[..., None]).squeeze(-1) + D * u


FORMS: dict[str, Scan] = {"ours": ours, "plain": plain, "plain, indexed": indexed, "mambapy pscan": pscan}


def arguments(b: int, t: int, d: int, n: int) -> list[Tensor]:
    """Random inputs as Mamba makes them."""
    torch.manual_seed(0)
    A = -torch.arange(1.0, n + 1).repeat(d, 1)
    dt = torch.nn.functional.softplus(torch.randn(b, t, d) - 3)
    x = [torch.randn(b, t, d), dt, A, torch.randn(b, t, n), torch.randn(b, t, n), torch.randn(d)]
    return [v.requires_grad_() for v in x]


def timed(scan: Scan, x: list[Tensor]) -> tuple[float, float]:
    """Seconds of a forward pass, and of forward and backward."""
    with torch.no_grad():
        start = time.perf_counter()
        scan(*x)
        forward = time.perf_counter() - start
    start = time.perf_counter()
    scan(*x).sum().backward()
    both = time.perf_counter() - start
    for v in x:
        v.grad = None
    return forward, both


def speed(threads: int, seconds: float, names: list[str]) -> list[str]:
    """Rows of the time table, from as many rounds as fit into `seconds`."""
    torch.set_num_threads(threads)
    x = arguments(*SIZE)
    best = {name: (float("inf"), float("inf")) for name in names}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        for name in names:
            for _ in range(4 if name == "ours" else int(name != "plain, indexed" or rounds < 2)):
                best[name] = tuple(map(min, best[name], timed(FORMS[name], x)))  # type: ignore[assignment]
        rounds += 1
    own = best["ours"]
    return [
        f"| {threads} | {name} | {f * 1e3:.1f} | {b * 1e3:.1f} | {f / own[0]:.1f} | {b / own[1]:.1f} |"
        for name, (f, b) in best.items()
    ]


def memory(name: str) -> str:
    """A row of the memory table, measured in its own process."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", name], capture_output=True, text=True, check=True
    ).stdout.split()
    inputs, peak = map(float, done)
    return f"| {name} | {inputs:.0f} | {peak:.0f} | {peak / inputs:.1f} |"


def peak_mb() -> float:
    """Peak memory of this process since it began, MB. (ru_maxrss would count the parent's as well.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


def print_peak(name: str) -> None:
    """Of this process: MB of the inputs, and MB by which the peak grew over forward and backward."""
    torch.set_num_threads(1)
    timed(FORMS[name], arguments(1, 32, 8, 2))  # whatever is loaded on first use
    x = arguments(*LONG)
    before = peak_mb()
    FORMS[name](*x).sum().backward()
    print(sum(v.nbytes for v in x) / 1e6, peak_mb() - before)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peak-of", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    if args.peak_of:
        print_peak(args.peak_of)
        return
    names = [n for n in FORMS if n != "mambapy pscan" or importlib.util.find_spec("mambapy")]
    rows = [row for threads in args.threads for row in speed(threads, args.seconds, names)]
    text = "\n".join(
        [
            "# Selective scan on a CPU",
            "",
            f"`python bench/scan.py --seconds {args.seconds:g}`, torch {torch.__version__}, {platform.machine()};",
            f"float32, B {SIZE[0]}, T {SIZE[1]}, D {SIZE[2]}, N {SIZE[3]}; milliseconds, best of alternating rounds.",
            "",
            "| threads | implementation | forward | forward + backward | forward / ours | both / ours |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Memory of forward + backward at B {LONG[0]}, T {LONG[1]}, D {LONG[2]}, N {LONG[3]}, including",
            "results and gradients, MB:",
            "",
            "| implementation | inputs | peak increase | ratio to inputs |",
            "|---|---|---|---|",
            *(memory(name) for name in names),
            "",
        ]
    )
    print(text)
    if not args.no_write:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

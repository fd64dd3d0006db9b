"""Time and memory by sequence length: Mamba-VA's encoder and a Transformer encoder, 1k to 64k frames.

    python bench/scaling.py                 forward pass, 1k to 64k; writes docs/benchmarks/scaling.{md,svg}
    python bench/scaling.py --backward      forward and backward pass

Both encoders follow the same TCN in MambaVA and TcnTransformer; here they run alone, with 4 layers of width 256, on
random frames. Every point is measured in its own process: seconds, and increase in peak memory. A point that would take
longer than --limit-s (extrapolated from the previous one) is skipped and marked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from affectrace.models.baselines import TcnTransformer, TcnTransformerConfig
from affectrace.models.mamba_va import MambaVA, MambaVAConfig

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
WIDTH = 256
LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)


class MambaEncoder(nn.Module):
    """MambaVA's four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = MambaVA(MambaVAConfig.paper(input_dim=8, tcn_channels=(WIDTH,), kernel_size=1)).mamba

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return x


class TransformerEncoder(nn.Module):
    """TcnTransformer's four layers."""

    def __init__(self) -> None:
        super().__init__()
        config = TcnTransformerConfig.paper(input_dim=8, tcn_channels=(WIDTH,), kernel_size=1, dropout=0.0)
        self.encoder = TcnTransformer(config).encoder

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(x)
        return y


ENCODERS = {"Mamba": MambaEncoder, "Transformer": TransformerEncoder}


def peak_mb() -> float:
    """Peak memory of this process since it began, MB. (ru_maxrss would count the parent's as well.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


def one_point(name: str, n_frames: int, backward: bool) -> None:
    """Prints seconds and MB for one encoder and length."""
    torch.manual_seed(0)
    encoder = ENCODERS[name]().train(backward)

    def step(x: Tensor) -> None:
        with torch.set_grad_enabled(backward):
            y = encoder(x)
        if backward:
            y.square().mean().backward()

    step(torch.randn(1, 64, WIDTH))
    x = torch.randn(1, n_frames, WIDTH)
    before = peak_mb()
    start = time.perf_counter()
    step(x)
    print(time.perf_counter() - start, peak_mb() - before)


def measure(backward: bool, limit_s: float) -> dict[str, list[tuple[int, float, float]]]:
    """(frames, seconds, MB) for each encoder."""
    points: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ENCODERS}
    for name, row in points.items():
        for n in LENGTHS:
            if row and row[-1][1] * (n / row[-1][0]) ** 2 > limit_s:
                break
            flags = ["--point", name, str(n)] + ["--backward"] * backward
            done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True)
            seconds, mb = map(float, done.stdout.split())
            row.append((n, seconds, mb))
    return points


def table(points: dict[str, list[tuple[int, float, float]]]) -> list[str]:
    """One row per length."""
    rows = [
        "| frames | " + " | ".join(f"{n} s | {n} MB" for n in points) + " |",
        "|---" * (1 + 2 * len(points)) + "|",
    ]
    for n in LENGTHS:
        cells = []
        for row in points.values():
            found = next((p for p in row if p[0] == n), None)
            cells += ["skipped"] * 2 if found is None else [f"{found[1]:.2f}", f"{found[2]:.0f}"]
        rows.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return rows


def plot(points: dict[str, list[tuple[int, float, float]]]) -> str:
    """Both measures by length on logarithmic axes, as SVG."""
    import math

    colours = dict(zip(points, ("#1b6ca8", "#c8553d")))
    panels = []
    for i, (what, column) in enumerate((("seconds", 1), ("MB", 2))):
        values = [max(p[column], 1e-3) for row in points.values() for p in row]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        left, top, width, height = 60 + i * 380, 40, 280, 220
        span = math.log10(LENGTHS[-1] / LENGTHS[0])
        panels.append(f'<text x="{left}" y="24" font-weight="bold">{what}</text>')
        for power in range(low, high + 1):
            y = top + height * (high - power) / max(1, high - low)
            panels.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            panels.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
        for n in LENGTHS:
            x = left + width * math.log10(n / LENGTHS[0]) / span
            panels.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{n // 1000}k</text>')
        for name, row in points.items():
            places = [
                (
                    left + width * math.log10(p[0] / LENGTHS[0]) / span,
                    top + height * (high - math.log10(max(p[column], 1e-3))) / max(1, high - low),
                )
                for p in row
            ]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            panels.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
            panels += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>' for x, y in places]
    legend = [
        f'<text x="{60 + 140 * i}" y="305" fill="{colour}">{name}</text>'
        for i, (name, colour) in enumerate(colours.items())
    ]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 320" font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="780" height="320" fill="white"/>', *panels, *legend, "</svg>", ""])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--limit-s", type=float, default=240.0, help="longest point to measure, seconds")
    parser.add_argument("--point", nargs=2, metavar=("ENCODER", "FRAMES"), help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    if args.point:
        one_point(args.point[0], int(args.point[1]), args.backward)
        return
    points = measure(args.backward, args.limit_s)
    stem = "scaling-backward" if args.backward else "scaling"
    what = "Forward and backward" if args.backward else "Forward"
    text = "\n".join(
        [
            "# Time and memory by sequence length",
            "",
            f"`python bench/scaling.py{' --backward' * args.backward} --limit-s {args.limit_s:g}`, "
            f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads.",
            f"{what} pass of four layers, width {WIDTH}, one sequence; MB: increase in peak memory.",
            "",
            f"![seconds and MB by number of frames]({stem}.svg)",
            "",
            *table(points),
            "",
        ]
    )
    print(text)
    if not args.no_write:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{stem}.md").write_text(text, encoding="utf-8")
        (OUT / f"{stem}.svg").write_text(plot(points), encoding="utf-8")


if __name__ == "__main__":
    main()

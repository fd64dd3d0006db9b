"""MAVEN on cached features at the paper's size: frames per second, and memory by length of the recording.

    python bench/maven.py                 prints the tables and writes docs/benchmarks/maven.md
    python bench/maven.py --repeats 1     quicker, rougher

Our implementation and a plain one of the authors' released network (torch's MultiheadAttention, attention matrices in
full) run alternately on the same weights and inputs, so that the ratio does not depend on other load.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affectrace.models.maven import Maven, MavenConfig
from affectrace.models.maven_convert import convert_state
from affectrace.models.segments import over_segments, segments_of

FPS = 30
UTTERANCE_S = 10.0
PAPERS = {
    "`.paper()`": MavenConfig.paper(),
    '`.paper(attention="beit")`': MavenConfig.paper(attention="beit"),
    "`.arxiv_v1()`": MavenConfig.arxiv_v1(),
}
Row = tuple[str, float, float | None, float, float | None]
"""Network, frames/s of inference, its ratio to plain, frames/s of training, its ratio to plain."""

OUT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "maven.md"


class PlainBlock(nn.Module):
    """A BEiT block, line by line, named as transformers names it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({f"{n}_proj": nn.Linear(768, 768, bias=n != "k") for n in "qkvo"})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(768, 3072), "fc2": nn.Linear(3072, 768)})
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(768, eps=1e-12), nn.LayerNorm(768, eps=1e-12)
        self.lambda_1, self.lambda_2 = nn.Parameter(torch.full((768,), 0.1)), nn.Parameter(torch.full((768,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layernorm_before(x)
        q, k, v = (self.attention[f"{n}_proj"](h).unflatten(2, (12, 64)).transpose(1, 2) for n in "qkv")
        a = (q @ k.transpose(-1, -2) / math.sqrt(64)).softmax(dim=-1)
        x = x + self.lambda_1 * self.attention["o_proj"]((a @ v).transpose(1, 2).flatten(2))
        return x + self.lambda_2 * self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.layernorm_after(x))))


class Plain(nn.Module):
    """The authors' networks in their plainest form; `encoders` False is their MLP variant."""

    def __init__(self, *, encoders: bool) -> None:
        super().__init__()
        fusion = {f"{m}_proj": nn.Linear(d, 512) for m, d in (("video", 1024), ("audio", 768), ("text", 768))}
        pairs = ("v2a", "v2t", "a2v", "a2t", "t2v", "t2a")
        fusion |= {f"attn_{p}": nn.MultiheadAttention(512, 2, dropout=0.1, batch_first=True) for p in pairs}
        self.multihead_attention = nn.ModuleDict(fusion | {"layer_norm": nn.LayerNorm(512)})
        if encoders:
            self.projection_layer = nn.Linear(1536, 768)
            stacks = (nn.ModuleDict({"layers": nn.ModuleList(PlainBlock() for _ in range(12))}) for _ in range(2))
            self.beit3_encoders = nn.ModuleList(stacks)
        fc = (nn.Linear(1536, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.3))
        self.regressor = nn.ModuleDict({"fc": nn.Sequential(*fc, nn.Linear(256, 2))})
        self.encoders = encoders

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        part = self.multihead_attention
        f = {m[0]: part[f"{m}_proj"](x) for m, x in zip(("video", "audio", "text"), inputs.values(), strict=True)}
        out = []
        for m in "vat":
            paths = [part[f"attn_{m}2{n}"](f[m], f[n], f[n])[0] for n in "vat" if n != m]
            out.append(part["layer_norm"](nn.functional.dropout((f[m] + sum(paths)) / 3, 0.1, self.training)))
        h = torch.cat([x.expand(-1, f["v"].shape[1], -1) for x in out], dim=-1)
        if self.encoders:
            h = self.projection_layer(h)
            both = []
            for stack in self.beit3_encoders:
                x = h
                for block in stack["layers"]:
                    x = block(x)
                both.append(x)
            h = torch.cat(both, dim=-1)
        return self.regressor["fc"](h)


def features(config: MavenConfig, batch: int, frames: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random cached features of `batch` utterances and their times: frames at 30, sound at 50, words at 3 a second."""
    seconds = frames / FPS
    rates = {"audio": 50, "text": 3} if config.clock == "native" else {}
    rows = {m: max(1, round(seconds * rates.get(m, FPS))) for m in config.streams}
    if config.clock == "utterance":
        rows |= {"audio": 1, "text": 1}
    inputs = {m: torch.randn(batch, rows[m], width) for m, width in config.streams.items()}
    times = {m: (torch.arange(n).double() + 0.5)[None].repeat(batch, 1) * (seconds / n) for m, n in rows.items()}
    return inputs, times


def seconds_in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each call; they take turns, after one round to warm up. Others on the machine only add."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                taken[name].append(time.perf_counter() - start)
    least = {name: min(values) for name, values in taken.items()}
    print(*(f"{name} {seconds:.3f} s" for name, seconds in least.items()), sep=", ", file=sys.stderr, flush=True)
    return least


def inference(model: nn.Module, call: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> None:
        model.eval()
        with torch.inference_mode():
            call()

    return run


def training(model: nn.Module, call: Callable[[], Tensor]) -> Callable[[], object]:
    """Forward, MSE, backward; the optimizer's step costs the same for both and is left out."""

    def run() -> None:
        model.train()
        call().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return run


def speeds(name: str, frames: int, batch: int, repeats: int) -> list[Row]:
    """One network; for a released one the plain form beside it, checked to say the same before anything is timed."""
    models: dict[str, nn.Module] = {}
    if name.startswith("released"):
        plain = Plain(encoders=name == "released BEiT")
        ours = convert_state(plain.state_dict()).model
        models = {f"{name}, plain": plain.eval(), f"{name}, ours": ours}
    else:
        ours = Maven(PAPERS[name])
        models = {name: ours}
    inputs, times = features(ours.config, batch, frames)
    if len(models) == 2:
        with torch.inference_mode():
            got = torch.stack(ours.polar(inputs), -1) if name == "released MLP" else ours(inputs)[0]
            assert float((plain(inputs) - got).abs().max()) < 1e-5
    taken = []
    for wrap in (inference, training):
        calls = {
            key: wrap(m, (lambda m=m: m(inputs)) if isinstance(m, Plain) else (lambda m=m: m(inputs, None, times)[0]))
            for key, m in models.items()
        }
        taken.append(seconds_in_turns(calls, repeats))
    first = next(iter(models))
    return [
        (key, *(x for t in taken for x in (batch * frames / t[key], t[first] / t[key] if len(models) == 2 else None)))
        for key in models
    ]


def memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak since `forget_peak`) of this process; Linux."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_of(kind: str, minutes: float) -> tuple[float, float]:
    """Run in a process of its own: MB above the network and its inputs, and seconds taken."""
    frames = int(minutes * 60 * FPS)
    if kind == "plain":
        model: nn.Module = Plain(encoders=True).eval()
        inputs, times = features(MavenConfig.released_beit(), 1, frames)
    else:
        model = Maven(MavenConfig.released_beit() if kind == "released" else MavenConfig.paper()).eval()
        inputs, times = features(model.config, 1, frames)
        if kind == "released":  # sound and words for each utterance, as they come for a whole recording
            n = round(minutes * 60 / UTTERANCE_S)
            for m in ("audio", "text"):
                inputs[m], times[m] = torch.randn(1, n, 768), (torch.arange(n).double()[None] + 0.5) * UTTERANCE_S
    forget_peak()
    before, start = memory_mb("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        if kind == "plain":
            model(inputs)
        else:
            edges = [i * UTTERANCE_S for i in range(round(minutes * 60 / UTTERANCE_S) + 1)]
            spoken = [(a + 1, b, "words") for a, b in pairwise(edges)]
            over_segments(model, inputs, segments_of(spoken, minutes * 60), None, times)
    return memory_mb("VmHWM") - before, time.perf_counter() - start


def apart(args: argparse.Namespace, *what: str) -> Any:
    """One measurement in a process of its own, as JSON."""
    common = ["--threads", str(args.threads), "--repeats", str(args.repeats), "--batch", str(args.batch)]
    command = [sys.executable, __file__, *common, "--one", *what]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| network | inference, frames/s | x plain | training, frames/s | x plain |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, i, ri, t, rt in rows:
        ratio = ["" if r is None else f"{r:.2f}" for r in (ri, rt)]
        lines.append(f"| {name} | {i:,.0f} | {ratio[0]} | {t:,.0f} | {ratio[1]} |")
    return lines


def report(args: argparse.Namespace) -> str:
    batch, repeats = args.batch, args.repeats
    lines = [
        "# MAVEN: speed and memory",
        "",
        f"Made by `python bench/maven.py --repeats {repeats} --minutes {' '.join(f'{m:g}' for m in args.minutes)}` "
        f"({platform.machine()}, {args.threads} threads, torch {torch.__version__}, float32).",
        "",
        f"Cached random features at the papers' widths, utterances of {UTTERANCE_S:.0f} s at {FPS} frames/s, batches",
        f'of {batch}. Training is forward, MSE and backward. "Plain" is a plain implementation of the authors\'',
        "released network with the same weights (outputs equal to 1e-5, checked before timing). The two run",
        f"alternately, and the best of {repeats} rounds is given, so that other load has little influence.",
        "",
    ]
    rows = [tuple(row) for name in ("released BEiT", "released MLP", *PAPERS) for row in apart(args, "speed", name)]
    lines += table(rows)
    lines += [
        "",
        "## Memory by length",
        "",
        "Peak memory in addition to the network and its inputs, each length in its own process. By utterances:",
        f"`over_segments` with utterances of {UTTERANCE_S:.0f} s. Whole: the plain implementation on the whole",
        "recording at once, with full attention matrices.",
        "",
        "| minutes | frames | `.paper()` by utterances, MB | s "
        "| released BEiT by utterances, MB | s | plain, whole, MB | s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for minutes in args.minutes:
        cells = [f"{minutes:g}", f"{int(minutes * 60 * FPS):,}"]
        for kind in ("paper", "released", "plain"):
            mb, s = apart(args, kind, str(minutes))
            cells += [f"{mb:,.0f}", f"{s:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[0.5, 1, 2, 4], help="recordings whose memory counts"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.one:
        kind, what = args.one
        frames = int(UTTERANCE_S * FPS)
        speed = kind == "speed"
        print(json.dumps(speeds(what, frames, args.batch, args.repeats) if speed else memory_of(kind, float(what))))
        return
    text = report(args)
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

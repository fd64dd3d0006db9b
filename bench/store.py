"""Speed and memory of batching windows of stored features.

    python bench/store.py            50,000 frames x 1024, a few seconds
    python bench/store.py --full     1,000,000 frames x 1024 (2.1 GB in a temporary folder, removed afterwards)
    python bench/store.py --full --out docs/benchmarks/store.md

The store has 50 recordings at 30 frames/s with 1024 float16 values per frame. An epoch reads all windows of 1000 frames
with stride 800 (Mamba-VA's), shuffled, in batches of 16, padded, masked, converted to float32; frames in two windows
count twice. Each row runs in its own process; its peak resident memory includes torch and all mapped pages. "files
cached": the files are in the page cache; "from disk": they are evicted first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.timeline import Timeline

DIM, SOUND_DIM, N_RECORDINGS, RATE, SOUND_RATE = 1024, 768, 50, 30, 50
GOAL_BYTES, GOAL_RATE = 2e9, 200_000


@dataclass(frozen=True)
class Row:
    """One measurement. sound: with a second modality at 50 Hz, averaged onto the frames."""

    name: str
    standardise: bool = False
    cold: bool = False
    sound: bool = False


ROWS = {
    "plain": Row("files cached"),
    "standardized": Row("files cached, standardized", standardise=True),
    "cold": Row("from disk", cold=True),
    "sound": Row("files cached, a fifth of them, with 768-d audio at 50 Hz averaged onto frames", sound=True),
}


def make_store(root: Path, n_frames: int) -> None:
    """Recordings of equal length; the numbers repeat, which nobody looks at."""
    store, rng = FeatureStore(root), np.random.default_rng(0)
    n = n_frames // N_RECORDINGS
    block = rng.normal(size=(n, DIM)).astype(np.float16)
    sound = rng.normal(size=(n * SOUND_RATE // RATE, SOUND_DIM)).astype(np.float16)
    for i in range(N_RECORDINGS):
        valid = rng.random(n) > 0.05
        pictures = Features("visual", Timeline.regular(n, RATE), block, valid, ExtractorId("pictures"))
        store.put(pictures, f"r{i:02d}")
        if i < N_RECORDINGS // 5:
            voice = Features(
                "voice",
                Timeline.regular(len(sound), SOUND_RATE),
                sound,
                np.ones(len(sound), bool),
                ExtractorId("sound"),
            )
            store.put(voice, f"r{i:02d}")


def measure(root: Path, row: Row) -> dict[str, float]:
    """One epoch in this process."""
    import torch  # noqa: F401 - loaded before the clock starts

    from affectrace.sequences import Sequence
    from affectrace.sequences.batches import Batches
    from affectrace.sequences.config import WindowScheme
    from affectrace.sequences.normalization import FeatureNormalizer

    store = FeatureStore(root)
    sequences = []
    for path in sorted((root / "pictures").iterdir()):
        pictures = store.get("pictures", path.stem)
        inputs = {"visual": pictures}
        if row.sound:
            if not store.path("sound", path.stem).exists():
                continue
            inputs["voice"] = store.get("sound", path.stem)
        sequences.append(Sequence(path.stem, pictures.timeline, inputs))
    statistics = FeatureNormalizer.fit(sequences[:2]) if row.standardise else None
    if row.cold:
        for path in root.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    batches = Batches(sequences, WindowScheme.mamba_va(), batch_size=16, statistics=statistics)
    wall, cpu, n = time.perf_counter(), time.process_time(), 0
    for batch in batches.epoch():
        n += batch.n_frames
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"frames": n, "wall_s": wall, "cpu_s": cpu, "peak_bytes": peak}


def bare_memory() -> float:
    """Peak bytes of a process that only has the imports of the rows."""
    code = (
        "import resource, torch, affectrace.sequences.batches; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Create the store, run the rows, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="1,000,000 frames instead of 50,000")
    options.add_argument("--rounds", type=int, default=3, help="times each row is run; the fastest counts")
    options.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    options.add_argument("--measure", nargs=2, metavar=("STORE", "ROW"), help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), ROWS[args.measure[1]])))
        return
    n_frames = 1_000_000 if args.full else 50_000
    with tempfile.TemporaryDirectory(prefix="affectrace-bench-") as folder:
        root = Path(folder)
        make_store(root, n_frames)
        size = sum(p.stat().st_size for p in root.rglob("pictures/*"))
        found = {name: [run(root, name) for _ in range(args.rounds)] for name in ROWS}
    text = report(n_frames, size, found, args)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def run(root: Path, name: str) -> dict[str, float]:
    """One row in its own process."""
    command = [sys.executable, __file__, "--measure", str(root), name]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def report(n_frames: int, size: int, found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> str:
    """The table as Markdown."""
    bare = bare_memory()
    command = "python bench/store.py" + " --full" * args.full + f" --rounds {args.rounds}"
    where = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    lines = [
        "# Feature store: batching windows",
        "",
        f"`{command}`: {n_frames:,} frames x {DIM} float16 ({size / 1e9:.2f} GB) in {N_RECORDINGS} files; windows of "
        "1000 frames with stride 800, shuffled, batches of 16 in float32, two data-loading threads. "
        f"{where}; the fastest of {args.rounds} runs (other load affects wall time, not CPU time).",
        "",
        "| epoch | frames | wall time, s | CPU time, s | frames/s | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        best, peak = min(runs, key=lambda r: r["wall_s"]), max(r["peak_bytes"] for r in runs)
        lines.append(
            f"| {ROWS[name].name} | {best['frames']:,.0f} | {best['wall_s']:.2f} | {best['cpu_s']:.2f} "
            f"| {best['frames'] / best['wall_s']:,.0f} | {peak / 1e9:.2f} |"
        )
    plain = min(found["plain"], key=lambda r: r["wall_s"])
    both = min(found["sound"], key=lambda r: r["wall_s"])
    peak = max(r["peak_bytes"] for r in found["plain"])
    rate = plain["frames"] / plain["wall_s"]
    small, fast = ("reached" if ok else "missed" for ok in (peak < GOAL_BYTES, rate > GOAL_RATE))
    lines += [
        "",
        f"Goals: peak memory under {GOAL_BYTES / 1e9:.0f} GB: {small} ({peak / 1e9:.2f}, of which {bare / 1e9:.2f} is "
        f"torch itself); {GOAL_RATE:,} frames/s: {fast} with one modality ({rate:,.0f}). With 50 Hz audio averaged "
        f"onto frames, the rate is {both['frames'] / both['wall_s']:,.0f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Time of each stage from a video file to measured faces, as ratios within one run.

    python bench/faces.py            stages on the clip
    python bench/faces.py --memory   also peak memory of the clip looped to one and to ten minutes

The clip is WolfgangLanger_Pexels.mp4 (640x360, 23.976 frames/s, 472 frames, one face). The stages run
alternately, --rounds times; the fastest round of each counts. CPU time is that of all threads: if it is below the wall
time times the number of cores, other load was present. The baseline is decoding plus one BlazeFace call per frame.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from predict import DATA, looped

from affectrace.features.face import ExpressionNetwork
from affectrace.media.faces.pipeline import FaceModels, track_faces
from affectrace.media.video import open_video

CLIP = DATA / "WolfgangLanger_Pexels.mp4"


class Stages:
    """Each stage runs over a whole file and gives its number of frames; networks are loaded before."""

    def __init__(self) -> None:
        self.models = FaceModels.load()
        self.expression = ExpressionNetwork.load()

    def decode(self, path: Path) -> int:
        return sum(1 for _ in open_video(path).frames())

    def floor(self, path: Path) -> int:
        return sum(len(self.models.short.detect(f.image)) >= 0 for f in open_video(path).frames())

    def mesh(self, path: Path) -> int:
        return len(track_faces(open_video(path).frames(), models=self.models).timeline)

    def faces(self, path: Path) -> int:
        observers = {"expression": self.expression}
        return len(track_faces(open_video(path).frames(), models=self.models, observers=observers).timeline)


NAMES = {
    "decode": "decoding",
    "floor": "decoding + one detector call per frame (baseline)",
    "mesh": "decoding + followed mesh",
    "faces": "faces, mesh and expression",
}


def measure(run: Callable[[Path], int], path: Path) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    n = run(path)
    return time.perf_counter() - wall, time.process_time() - cpu, n


def speed(rounds: int) -> None:
    stages, best = Stages(), dict[str, tuple[float, float, int]]()
    duration_s = open_video(CLIP).timeline.duration_s
    for _ in range(rounds):
        for name in NAMES:
            now = measure(getattr(stages, name), CLIP)
            best[name] = min(best.get(name, now), now)
    print(f"{os.cpu_count()} cores, {rounds} rounds\n")
    print("| stage | frames/s | x real time | relative to the baseline | CPU ms per frame |")
    print("|---|---|---|---|---|")
    for name, (wall, cpu, n) in best.items():
        ratio = best["floor"][0] / wall
        print(f"| {NAMES[name]} | {n / wall:.0f} | {duration_s / wall:.1f} | {ratio:.2f} | {1e3 * cpu / n:.2f} |")


def memory() -> None:
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for seconds in (60, 600):
            clip = looped(seconds, Path(folder) / f"{seconds}.mp4")
            command = [sys.executable, __file__, "--peak", str(clip)]
            peaks[seconds] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"{seconds} s: peak {peaks[seconds]['mb']:.0f} MB, {peaks[seconds]['s']:.1f} s")
    print(f"peak memory x {peaks[600]['mb'] / peaks[60]['mb']:.2f}, time x {peaks[600]['s'] / peaks[60]['s']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each stage runs")
    parser.add_argument("--memory", action="store_true", help="also peak memory at one and at ten minutes")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        wall, _, _ = measure(Stages().faces, args.peak)
        print(json.dumps({"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "s": wall}))
        return
    if not CLIP.is_file():
        raise SystemExit(f"{CLIP}: the real clip is not there; set AFFECTRACE_REAL_DATA")
    speed(args.rounds)
    if args.memory:
        memory()


if __name__ == "__main__":
    main()

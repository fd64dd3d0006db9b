"""Speed and memory of `predict`, as ratios within one run; writes docs/benchmarks/predict.md.

    python bench/predict.py                     speed on the real clip looped to one minute
    python bench/predict.py --long              also memory and time at ten minutes
    python bench/predict.py --fer-python PATH   also the video analysis of the `fer` package, in its own environment
                                                (pip install --no-deps fer==25.10.3; pip install tensorflow-cpu
                                                'opencv-python-headless<5' requests pandas matplotlib tqdm pillow)

The clip is WolfgangLanger_Pexels.mp4 (640x360, 23.976 frames/s) with the audio of jfk.flac, repeated. Every row runs in
its own process; peak memory is that of this process. The baseline is decoding plus one BlazeFace call per frame.
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
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data")) / "clips"


def looped(seconds: float, out: Path) -> Path:
    """The clip's packets repeated to `seconds`, with speech as its sound."""
    import av
    import numpy as np

    with av.open(str(DATA / "jfk.flac")) as sound:
        resampler = av.AudioResampler("fltp", "mono", 16_000)
        parts = [f.to_ndarray()[0] for frame in sound.decode(audio=0) for f in resampler.resample(frame)]
    speech = np.concatenate(parts)
    speech = np.tile(speech, int(np.ceil(seconds * 16_000 / speech.size)))[: int(seconds * 16_000)]
    with av.open(str(out), "w") as target:
        with av.open(str(DATA / "WolfgangLanger_Pexels.mp4")) as source:
            video = target.add_stream_from_template(source.streams.video[0])
            base, one = source.streams.video[0].time_base, source.streams.video[0].duration
        voice = target.add_stream("aac", rate=16_000, layout="mono")
        shift = 0
        while shift * base < seconds:
            with av.open(str(DATA / "WolfgangLanger_Pexels.mp4")) as source:
                for packet in source.demux(video=0):
                    if packet.dts is None or (packet.pts + shift) * base >= seconds:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, video
                    target.mux(packet)
            shift += one
        for first in range(0, speech.size, 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(speech[None, first : first + 1024]), "fltp", "mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), first
            target.mux(voice.encode(frame))
        target.mux(voice.encode(None))
    return out


def decode(path: Path) -> int:
    from affectrace.media.video import open_video

    return sum(1 for _ in open_video(path).frames())


def floor(path: Path) -> int:
    from affectrace.media.faces.pipeline import FaceModels
    from affectrace.media.video import open_video

    detector, n = FaceModels.load().short, 0
    for frame in open_video(path).frames():
        detector.detect(frame.image)
        n += 1
    return n


def faces(path: Path) -> int:
    import affectrace

    return len(affectrace.predict(path, modalities=("visual",)))


def everything(path: Path) -> int:
    import affectrace

    trace = affectrace.predict(path)
    assert any(s.kind == "word" for s in trace.spans), "no words were heard"
    return len(trace)


def sound(path: Path) -> int:
    import affectrace

    return len(affectrace.predict(path, modalities=("audio", "text")))


ROWS = {
    "decode": (decode, "decoding"),
    "floor": (floor, "decoding + one detector call per frame (baseline)"),
    "faces": (faces, "faces, mesh and expression (`--modalities visual`)"),
    "sound": (sound, "voice and words (`--modalities audio text`)"),
    "everything": (everything, "everything with transcription"),
}

FER = """
import sys, time, resource
from fer.fer import FER
import cv2
detector = FER()
capture = cv2.VideoCapture(sys.argv[1])
start, n = time.perf_counter(), 0
while True:
    ok, image = capture.read()
    if not ok:
        break
    detector.detect_emotions(image)
    n += 1
print('{"n": %d, "s": %f, "mb": %f}' % (
    n, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def measure(row: str, path: Path) -> dict[str, float]:
    """Run one row in its own process: frames, seconds (start of the interpreter left out), peak memory in MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--row", row, "--clip", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{row} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_row(row: str, path: Path) -> None:
    start = time.perf_counter()
    n = ROWS[row][0](path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"n": n, "s": time.perf_counter() - start, "mb": peak}))


def goals(found: dict[str, dict[str, float]], seconds: float, long: dict[str, float] | None) -> str:
    """The goals, and those that this run missed."""
    faces, all_of_it, floor_s = found["faces"]["s"], found["everything"], found["floor"]["s"]
    reached = {
        "faces, mesh and expression at least 8 x real time": seconds / faces >= 8,
        "at least half as fast as the baseline": floor_s / faces >= 0.5,
        "everything at least 4 x real time": seconds / all_of_it["s"] >= 4,
        "peak memory under 1500 MB": max(all_of_it["mb"], long["mb"] if long else 0) < 1500,
    }
    if long:
        reached["peak memory for ten minutes at most 1.1 times that for one"] = long["mb"] <= 1.1 * all_of_it["mb"]
    missed = [goal for goal, met in reached.items() if not met]
    return f"Goals: {'; '.join(reached)}. {'Missed: ' + '; '.join(missed) if missed else 'All are met'} in this run."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the clip (s)")
    parser.add_argument("--long", action="store_true", help="also ten minutes")
    parser.add_argument("--fer-python", type=Path, help="Python of an environment with the fer package")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "predict.md")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        return run_row(args.row, args.clip)
    if not DATA.is_dir():
        raise SystemExit(f"{DATA}: the real clips are not there; set AFFECTRACE_REAL_DATA")
    from affectrace import weights

    weights.fetch()
    command = " ".join(
        ["python bench/predict.py", *(["--long"] * args.long), *(["--fer-python PYTHON"] * bool(args.fer_python))]
    )
    lines = [
        "# Speed and memory of `predict`",
        "",
        f"`{command}`; {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.",
        f"Clip: 640x360, 23.976 frames/s, {args.seconds:g} s, continuous speech.",
        "Times include loading the networks once per process.",
        "",
        "| stage | x real time | speed relative to the baseline | peak memory (MB) |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        clip = looped(args.seconds, Path(folder) / "clip.mp4")
        found = {}
        for row, (_, name) in ROWS.items():
            found[row] = measure(row, clip)
            speed = args.seconds / found[row]["s"]
            ratio = found["floor"]["s"] / found[row]["s"] if "floor" in found else float("nan")
            lines.append(
                f"| {name} | {speed:.1f} | {'' if ratio != ratio else f'{ratio:.2f}'} | {found[row]['mb']:.0f} |"
            )
            print(lines[-1], flush=True)
        if args.fer_python:
            done = subprocess.run([args.fer_python, "-c", FER, clip], capture_output=True, text=True, check=True)
            rival = json.loads(done.stdout.splitlines()[-1])
            lines.append(
                f"| the `fer` package: expression of every frame (Haar cascade, no mesh, no tracking) | "
                f"{args.seconds / rival['s']:.1f} | {found['floor']['s'] / rival['s']:.2f} | {rival['mb']:.0f} |"
            )
            print(lines[-1], flush=True)
        long = None
        if args.long:
            long = measure("everything", looped(10 * args.seconds, Path(folder) / "long.mp4"))
            short = found["everything"]
            lines += [
                "",
                f"Everything, clip ten times as long ({10 * args.seconds:g} s): "
                f"{10 * args.seconds / long['s']:.1f} x real time, {long['s'] / short['s']:.1f} times the time, "
                f"peak memory {long['mb']:.0f} MB, {long['mb'] / short['mb']:.2f} times as much.",
            ]
            print(lines[-1])
    lines += ["", goals(found, args.seconds, long)]
    print(lines[-1])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

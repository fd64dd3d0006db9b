"""Cost of feature extraction per frame or second of audio, and the resulting estimate for Aff-Wild2.

    python bench/extract.py                                   about five minutes on an idle core
    python bench/extract.py --out docs/benchmarks/extract.md

CPU time of one thread, so that other load has little influence; every row in its own process. Networks have their
published sizes; weights that are not on this machine are random, at the same cost. Images are
WolfgangLanger_Pexels.mp4 (640x360) and JPEG crops of 112 x 112, as in Aff-Wild2; audio is speech (jfk.flac, repeated).
Nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data")) / "clips"
CLIP, SPEECH = DATA / "WolfgangLanger_Pexels.mp4", DATA / "jfk.flac"
FRAMES = 2_993_081  # of Aff-Wild2
FPS = 30  # mostly
AT_ONCE = 16  # crops per batch


@dataclass(frozen=True)
class Row:
    """One measurement. unit: what is counted. dim: values per feature row. rows_hz: rows per second (0: per frame)."""

    name: str
    unit: str
    measure: Callable[[], tuple[float, float]]
    dim: int = 0
    rows_hz: int = 0


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """(amount of work, CPU seconds)."""
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


def scanned() -> tuple[float, float]:
    from affectrace.media.video import scan_timeline

    scan_timeline(CLIP)
    return timed(lambda: float(sum(len(scan_timeline(CLIP)) for _ in range(3))))


def decoded() -> tuple[float, float]:
    from affectrace.media.video import open_video

    return timed(lambda: float(sum(1 for f in open_video(CLIP).frames() if f.image is not None)))


def followed() -> tuple[float, float]:
    from affectrace.features.face import MeshGeometry
    from affectrace.media.faces.pipeline import track_faces
    from affectrace.media.video import open_video

    def work() -> float:
        video = open_video(CLIP)
        tracks = track_faces(
            video.frames(), timeline=lambda: video.timeline, observers={"mesh": MeshGeometry()}, n_frames=None
        )
        return float(len(tracks.timeline))

    return timed(work)


def crops_read() -> tuple[float, float]:
    from PIL import Image

    from affectrace.features.pipeline import NumberedCrops

    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).normal(0, 12, (112, 112, 3))
        with Image.open(DATA / "single_face.jpg") as photo:
            face = np.asarray(photo.convert("RGB").resize((112, 112))) + noise
        for i in range(300):
            Image.fromarray(np.clip(face, 0, 255).astype(np.uint8)).save(Path(folder) / f"{i + 1:05d}.jpg", quality=92)
        from fractions import Fraction

        crops = NumberedCrops(Path(folder), None, Fraction(FPS))
        return timed(lambda: float(sum(1 for _ in crops.pictures())))


def pictures_through(name: str, n: int) -> Callable[[], tuple[float, float]]:
    def run() -> tuple[float, float]:
        extractor = picture_network(name)
        crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)

        def work() -> float:
            for first in range(0, n, AT_ONCE):
                extractor.measure(np.stack([extractor.fit(crop) for _ in range(min(AT_ONCE, n - first))]))
            return float(n)

        extractor.measure(extractor.fit(crop)[None])
        return timed(work)

    return run


def picture_network(name: str) -> Any:
    """The extractor at full size, with random weights if it is from the Hub."""
    import transformers

    from affectrace.features import image as visual
    from affectrace.features import registry

    if name == "efficientnet-lite0":
        return registry.load_one(name)
    sizes: dict[str, tuple[type, Any]] = {
        "mae-vit-b": (transformers.ViTMAEModel, transformers.ViTMAEConfig(mask_ratio=0.0)),
        "mae-vit-l": (
            transformers.ViTMAEModel,
            transformers.ViTMAEConfig(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                mask_ratio=0.0,
            ),
        ),
        "swin-b": (
            transformers.SwinModel,
            transformers.SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),
        ),
        "beit-b": (
            transformers.BeitModel,
            transformers.BeitConfig(use_relative_position_bias=True, use_mean_pooling=True),
        ),
        "resnet-50": (transformers.ResNetModel, transformers.ResNetConfig()),
    }
    kind, config = sizes[name]
    family = registry.ENCODERS[name].family
    return visual.VisualExtractor(name, visual.Backbone(family, kind(config)), visual.PREPROCESSING[family])


def sound_through(name: str) -> Callable[[], tuple[float, float]]:
    def run() -> tuple[float, float]:
        from affectrace.features import registry
        from affectrace.media.audio import Audio, read_audio

        samples = np.tile(read_audio(SPEECH, 16_000).samples, 6)[: 60 * 16_000]
        audio = Audio(samples, 16_000)
        if name == "prosody":
            from affectrace.media.speech import voice_activity

            prosody = registry.load_one(name)
            return timed(lambda: (prosody(audio, voice_activity(audio)), 60.0)[1])  # type: ignore[operator]
        import transformers

        from affectrace.features.audio import AudioExtractor
        from affectrace.features.audio_networks import Wav2Vec2

        extractor = AudioExtractor(name, Wav2Vec2(transformers.HubertModel(transformers.HubertConfig())))
        return timed(lambda: (extractor(audio), 60.0)[1])

    return run


ROWS = {
    "scan": Row("reading the packet times of a video", "frame", scanned),
    "decode": Row("decoding a video, 640x360", "frame", decoded),
    "mesh": Row("decoding, face tracking, mesh-geometry", "frame", followed, 9),
    "crops": Row("reading crops", "frame", crops_read),
    "efficientnet-lite0": Row("efficientnet-lite0", "frame", pictures_through("efficientnet-lite0", 64), 1280),
    "resnet-50": Row("resnet-50", "frame", pictures_through("resnet-50", 32), 2048),
    "mae-vit-b": Row("mae-vit-b", "frame", pictures_through("mae-vit-b", 16), 768),
    "beit-b": Row("beit-b", "frame", pictures_through("beit-b", 16), 768),
    "swin-b": Row("swin-b", "frame", pictures_through("swin-b", 16), 1024),
    "mae-vit-l": Row("mae-vit-l", "frame", pictures_through("mae-vit-l", 16), 1024),
    "prosody": Row("prosody, with voice activity detection", "second", sound_through("prosody"), 5, 100),
    "hubert-base": Row("hubert-base", "second", sound_through("hubert-base"), 768, 50),
}


def run(name: str) -> tuple[float, float]:
    """One row in its own process, with one thread."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **one})
    n, seconds = json.loads(done.stdout.splitlines()[-1])
    return n, seconds


def report(found: dict[str, tuple[float, float]], load: float) -> str:
    """The table as Markdown. load: load average during the measurement."""
    where = f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    lines = [
        "# Feature extraction: cost, and an estimate for Aff-Wild2",
        "",
        f"`python bench/extract.py`: CPU time of one thread ({where}), float32. For Aff-Wild2, the cost is multiplied "
        f"by {FRAMES:,} frames, or {FRAMES / FPS / 3600:.1f} hours at {FPS} frames/s, on one core; divide by "
        f"`--workers`. No GPU was measured. Load average during the measurement: {load:.0f} (an idle machine is "
        "faster).",
        "",
        "| | milliseconds | per | per second on one core | Aff-Wild2, core hours | float16 on disk |",
        "|---|---|---|---|---|---|",
    ]
    for name, (n, seconds) in found.items():
        row = ROWS[name]
        units = FRAMES if row.unit == "frame" else FRAMES / FPS
        hours = seconds / n * units / 3600
        size = row.dim * 2 * (FRAMES if not row.rows_hz else FRAMES / FPS * row.rows_hz)
        disk = f"{size / 1e9:.2f} GB" if row.dim else ""
        lines.append(
            f"| {row.name} | {1000 * seconds / n:.2f} | {row.unit} | {n / seconds:,.1f} "
            f"| {hours:,.{1 if hours >= 1 else 2}f} | {disk} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the rows, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="only these rows")
    options.add_argument("--out", type=Path, help="Markdown file to write the table to")
    options.add_argument("--measure", choices=ROWS, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(ROWS[args.measure].measure()))
        return
    found = {}
    for name in args.only:
        found[name] = run(name)
        print(f"{ROWS[name].name}: {found[name][0]:g} in {found[name][1]:.2f} s", file=sys.stderr, flush=True)
    text = report(found, os.getloadavg()[1])
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

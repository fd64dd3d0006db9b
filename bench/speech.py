"""Time of each stage from audio to words, as multiples of real time.

    python bench/speech.py                    voice activity, prosody, transcription of jfk.flac repeated to 5 minutes
    python bench/speech.py --memory           also peak memory for one and ten minutes of audio
    python bench/speech.py --asr-model base   with the multilingual model

jfk.flac: 11 s of a male speaker, of which 8.4 s are speech. CPU time is that of all threads, also as a multiple of real
time: if the two differ by more than the number of cores, other load was present. Words: number of spoken words that
were recognized, in order.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from affectrace.features.prosody import prosody
from affectrace.media.audio import Audio, read_audio
from affectrace.media.speech import load_recognizer, transcribe, voice_activity

DATA = Path(os.environ.get("AFFECTRACE_REAL_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
SAID = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def repeated(seconds: float) -> Audio:
    """The recording again and again, at least `seconds` long."""
    once = read_audio(DATA / "clips" / "jfk.flac")
    assert once is not None
    return Audio(np.tile(once.samples, max(1, round(seconds / once.duration_s))), once.sample_rate_hz)


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    """Result, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def stages(audio: Audio, model: str) -> list[dict[str, object]]:
    """One row a stage."""
    load_recognizer(model)
    voice_activity(Audio(audio.samples[:16000], audio.sample_rate_hz))  # networks are loaded before
    activity, *first = timed(lambda: voice_activity(audio))
    _, *second = timed(lambda: prosody(audio, activity))  # type: ignore[arg-type]
    words, *third = timed(lambda: transcribe(audio, model=model, language="en", activity=activity))  # type: ignore[arg-type]
    rows = []
    for name, (wall, cpu) in {"voice activity": first, "prosody": second, f"transcription ({model})": third}.items():
        rows.append({"stage": name, "real_time": audio.duration_s / wall, "cpu": audio.duration_s / cpu})
    heard = [re.sub(r"[^a-z]", "", w.text.lower()) for w in words.words]  # type: ignore[attr-defined]
    expected = SAID.split() * round(audio.duration_s / 11)
    right = sum(b.size for b in difflib.SequenceMatcher(None, heard, expected, False).get_matching_blocks())
    rows[-1]["words"] = f"{right} of {len(expected)} right, {len(heard)} heard"
    return rows


def own_peak_mb() -> float:
    """Peak memory of this process alone (Linux counts the parent's into ru_maxrss when it starts another)."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def peak_mb(seconds: float, model: str) -> float:
    """Peak memory of all three stages, in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import speech;"
        f"speech.stages(speech.repeated({seconds}), {model!r}); print(speech.own_peak_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--asr-model", default="tiny.en")
    options.add_argument("--memory", action="store_true")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    rows = stages(repeated(given.seconds), given.asr_model)
    if given.memory:
        for minutes in (1, 10):
            rows.append({"stage": f"peak memory, {minutes} min", "mb": peak_mb(60 * minutes, given.asr_model)})
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'':34s}{'x real time':>12s}{'by CPU time':>12s}")
    for row in rows:
        if "mb" in row:
            print(f"{row['stage']:34s}{row['mb']:10.0f} MB")
        else:
            print(f"{row['stage']:34s}{row['real_time']:12.1f}{row['cpu']:12.1f}  {row.get('words', '')}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"load {load:.1f} on {os.cpu_count()} cores; this process peaked at {own_peak_mb():.0f} MB")


if __name__ == "__main__":
    main()

"""Generation of a synthetic data set: planning, parallel rendering, and the files of the tree.

    OUT/VA_Estimation_Challenge/{Train_Set,Validation_Set}/<trial>.txt     labels, -5 where "not annotated"
    OUT/videos/<video>.mp4 or .avi                                         H.264 and sound
    OUT/cropped_aligned/<trial>/00001.jpg                                  112 x 112, none where no face is seen
    OUT/transcripts/<trial>.txt                                            [10.5s - 15.2s]: text
    OUT/Valence_Arousal_Estimation_Challenge_test_set_release.txt          test trials
    OUT/CVPR_0th_ABAW_VA_test_set_sample.txt                               frames a submission answers
    OUT/subjects.csv, OUT/truth/<trial>.csv                                who is who, the exact truth
    OUT/synth.json                                                         what made it; readers know the tree by this

Smooth random signals of valence and arousal drive face, voice and words (`valence_in`, `arousal_in`; whatever is not
listed follows a decoy of the same kind and carries no information). The label is a leaky integral of the drive, so it
depends on the past. While a face is missing the drive is constant, but the label continues and is scored.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from affectrace import __version__
from affectrace.config import checked
from affectrace.datasets.aff_wild2_files import SYNTH
from affectrace.datasets.synthetic.affect_signal import Stretches, draw_signal, oracle_scores
from affectrace.datasets.synthetic.config import MODALITIES, SynthConfig
from affectrace.datasets.synthetic.render import Plan, TrialPlan, draw_subject, make_recording
from affectrace.datasets.synthetic.speech import SpeakingStyle, VocalTract, espeak_path
from affectrace.errors import OutputError
from affectrace.features.config import modality_names
from affectrace.progress import Progress, ProgressEvent, silent

TRAIN, VALIDATION, TEST = "train", "validation", "test"
LABEL_FOLDERS = {TRAIN: "Train_Set", VALIDATION: "Validation_Set"}
TEST_LIST = "Valence_Arousal_Estimation_Challenge_test_set_release.txt"
SAMPLE = "CVPR_0th_ABAW_VA_test_set_sample.txt"
# 30 Hz, film, television, a slow webcam, and a phone's variable rate (0)
_RATES = (Fraction(30), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(15), Fraction(0))


@dataclass(frozen=True)
class SynthReport:
    """A synthetic data set. oracle: CCC by oracle and dimension, over the scored validation frames."""

    root: Path
    trials: dict[str, str]
    frames: int
    oracle: dict[str, dict[str, float]]

    def lines(self) -> list[str]:
        """A summary for printing."""
        counts = ", ".join(f"{list(self.trials.values()).count(name)} {name}" for name in (TRAIN, VALIDATION, TEST))
        rows = [f"{len(self.trials)} trials ({counts}), {self.frames} frames in {self.root}"]
        for judge, scores in self.oracle.items():
            rows.append(f"CCC of {judge}: valence {scores['valence']:.3f}, arousal {scores['arousal']:.3f}")
        return rows


def synthesize(
    out: str | Path, config: SynthConfig | None = None, *, jobs: int = 1, progress: Progress = silent
) -> SynthReport:
    """Make a data set in a new folder, whole or not at all.

    jobs: processes, 0 for one a core; the result does not depend on it. Above 1, scripts need the usual
        `if __name__ == "__main__":`.
    """
    config, out = checked(config or SynthConfig()), Path(out)
    if config.voice == "espeak":
        espeak_path()
    plans = draw_plans(config)
    with _whole_or_nothing(out) as folder:
        results = _make_all(folder, plans, jobs, progress)
        trials = {trial.name: plan.split for plan in plans for trial in plan.trials}
        oracle = oracle_scores(
            [results[name] for name, split in trials.items() if split == VALIDATION],
            ("visual" in config.valence_in, "visual" in config.arousal_in),
        )
        report = SynthReport(out, trials, sum(r["frames"] for r in results.values()), oracle)
        _write_lists(folder, plans, results, config, report)
    return report


def already_made(out: str | Path, config: SynthConfig) -> SynthReport | None:
    """The data set that `synthesize` made in this folder with the same config; None if there is none.

    Raises OutputError naming the differences if it was made with another config.
    """
    out = Path(out)
    try:
        record = json.loads((out / SYNTH).read_text(encoding="utf-8"))
        before, made = dict(record["config"]), record["trials"]
        for key in ("valence_in", "arousal_in"):  # older data sets have face, voice and words
            before[key] = list(modality_names(before[key]))
        trials = {name: str(trial["split"]) for name, trial in made.items()}
        report = SynthReport(out, trials, sum(int(trial["frames"]) for trial in made.values()), record["oracle"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    asked = json.loads(json.dumps(asdict(config)))
    other = [f"{k} {before.get(k)}, not {asked[k]}" for k in asked if before.get(k) != asked[k]]
    if other:
        hint = "name a new folder, or remove this one"
        raise OutputError(f"was made with other options ({'; '.join(other)})", where=out, hint=hint)
    return report


def left_behind(out: str | Path) -> tuple[Path, ...]:
    """Hidden folders beside `out` of unfinished runs: under way, or killed."""
    out = Path(out)
    return tuple(sorted(out.parent.glob(f".{out.name}.*.part")))


# ---- plans: everything random is drawn first


def draw_plans(config: SynthConfig) -> list[Plan]:
    """One plan a video; video i depends on the seed and i alone."""
    n = config.recordings
    n_validation = max(1, round(config.validation * n))
    n_test = min(round(config.test * n), n - n_validation - 1)
    splits = [TRAIN] * (n - n_validation - n_test) + [VALIDATION] * n_validation + [TEST] * n_test
    order = np.random.default_rng([config.seed, 10**6]).permutation(n)
    pairs = order[: round(config.two_person * n)]
    return [_draw_plan(config, i, split, two=i in pairs) for i, split in enumerate(splits)]


def _draw_plan(config: SynthConfig, index: int, split: str, two: bool) -> Plan:
    rng = np.random.default_rng([config.seed, index])
    name = f"synth_{index + 1:04d}"
    rate = _RATES[index % len(_RATES)] if config.odd_rates else Fraction(30)
    names = (f"{name}_left", f"{name}_right") if two else (name,)
    turns = _turns(config.seconds, len(names))
    trials = tuple(_draw_trial(config, trial, turns[k], rng) for k, trial in enumerate(names))
    suffix = ".avi" if rate.denominator == 1 and rate > 0 and index % 3 == 2 else ".mp4"
    seed = (config.seed, index, 1)
    return Plan(name, suffix, split, rate, config.seconds, config.size, trials, config.voice, config.crops, seed)


def _turns(seconds: float, people: int) -> list[Stretches]:
    """When each person may speak: one always, two in turns of four seconds."""
    if people == 1:
        return [((0.0, seconds),)]
    starts = np.arange(0.0, seconds, 4.0)
    return [tuple((float(s), float(min(s + 4.0, seconds))) for s in starts[k::2]) for k in range(2)]


def _draw_trial(config: SynthConfig, name: str, turns: Stretches, rng: np.random.Generator) -> TrialPlan:
    missing = _stretches(config.missing, config.seconds, (1.0, 3.0), rng)
    valence, arousal = (draw_signal(config.seconds, config.tau_s, rng, missing) for _ in range(2))
    shown = {}
    for modality in MODALITIES:
        decoys = [draw_signal(config.seconds, config.tau_s, rng) for _ in range(2)]
        shown[modality] = (
            valence if modality in config.valence_in else decoys[0],
            arousal if modality in config.arousal_in else decoys[1],
        )
    noise = [draw_signal(config.seconds, 0.0, rng).drive * config.label_noise for _ in range(2)]
    return TrialPlan(
        name=name,
        signals=(valence, arousal),
        face=shown["visual"],
        style=SpeakingStyle(
            word_valence=shown["text"][0],
            word_arousal=arousal if "text" in config.arousal_in else None,
            voice_arousal=shown["audio"][1],
            voice_valence=valence if "audio" in config.valence_in else None,
        ),
        noise=(noise[0], noise[1]),
        missing=missing,
        unlabelled=_stretches(config.unlabelled, config.seconds, (0.3, 1.2), rng),
        turns=turns,
        subject=draw_subject(config.seconds, rng),
        tract=VocalTract(float(rng.uniform(95, 210)), float(rng.uniform(0.9, 1.12))),
        row_offset=int(rng.choice([0, 0, 0, 1, -1, 2])) if config.odd_rows else 0,
    )


def _stretches(share: float, seconds: float, length_s: tuple[float, float], rng: np.random.Generator) -> Stretches:
    """Stretches that cover about `share` of the time in total, apart from each other and from the ends."""
    wanted, found = share * seconds, list[tuple[float, float]]()
    for _ in range(200):
        left = wanted - sum(b - a for a, b in found)
        if left < 0.6 * length_s[0]:
            break
        length = min(rng.uniform(*length_s), max(left, length_s[0]))
        start = rng.uniform(0.08 * seconds, max(seconds - length - 0.5, 0.09 * seconds))
        if start + length < seconds and all(start > b + 1 or start + length < a - 1 for a, b in found):
            found.append((float(start), float(start + length)))
    return tuple(sorted(found))


# ---- making


def _make_all(folder: Path, plans: list[Plan], jobs: int, progress: Progress) -> dict[str, dict[str, Any]]:
    """The results of `make_recording` for every trial."""
    jobs = min(jobs or os.cpu_count() or 1, len(plans))
    results: dict[str, dict[str, Any]] = {}

    def collect(made: Iterable[dict[str, dict[str, Any]]]) -> None:
        for done, result in enumerate(made, 1):
            results.update(result)
            progress(ProgressEvent("recordings", done, len(plans), "files"))

    progress(ProgressEvent("recordings", 0, len(plans), "files"))
    if jobs == 1:
        collect(make_recording(folder, plan) for plan in plans)
        return results
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    with _one_thread_each(), ProcessPoolExecutor(jobs, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            running = [pool.submit(make_recording, folder, plan) for plan in plans]
            collect(future.result() for future in as_completed(running))
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise OutputError("a process that makes recordings died", where=folder, hint="use one job") from None
            raise
    return results


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile compute in one thread: more would compete for the cores."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _write_lists(
    folder: Path, plans: list[Plan], results: dict[str, dict[str, Any]], config: SynthConfig, report: SynthReport
) -> None:
    made = [(plan, trial, results[trial.name]) for plan in plans for trial in plan.trials]
    for name in LABEL_FOLDERS.values():
        (folder / "VA_Estimation_Challenge" / name).mkdir(parents=True)
    for plan, trial, result in made:
        if plan.split in LABEL_FOLDERS:
            labels = folder / "VA_Estimation_Challenge" / LABEL_FOLDERS[plan.split]
            (labels / f"{trial.name}.txt").write_text(result["labels"], encoding="utf-8")
    tests = [(trial.name, result["frames"]) for plan, trial, result in made if plan.split == TEST]
    rows = [f"{name}/{i + 1:05d}.jpg,0,0" for name, n_frames in tests for i in range(n_frames)]
    people = [f"{trial.name},subject_{trial.name}" for _, trial, _ in made]
    trials = {
        trial.name: {
            "split": plan.split,
            "video": f"videos/{plan.name}{plan.suffix}",
            "rate": str(plan.rate) if plan.rate else "variable",
            "frames": result["frames"],
            "rows": result["frames"] + trial.row_offset,
            "missing": trial.missing,
            "unlabelled": trial.unlabelled,
        }
        for plan, trial, result in made
    }
    record = {
        "generator": "affectrace synth",
        "version": __version__,
        "config": asdict(config),
        "trials": trials,
        "oracle": report.oracle,
    }
    for name, lines in (
        (TEST_LIST, [name for name, _ in tests]),
        (SAMPLE, ["image_location,valence,arousal", *rows]),
        ("subjects.csv", ["trial,subject", *people]),
        (SYNTH, [json.dumps(record, indent=1)]),
    ):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, renamed to `out` at the end."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("exists and is not an empty folder", where=out, hint="name a new folder, or remove this one")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=out, hint="check the path") from None
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)

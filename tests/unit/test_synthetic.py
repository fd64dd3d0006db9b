"""Synthetic recordings: layout, conventions, planted signals, oracles, reproducibility."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason='needs pip install "affectrace[data]"')

from affectrace.datasets.aff_wild2 import read_aff_wild2
from affectrace.datasets.manifest import is_generated
from affectrace.datasets.synthetic import SynthConfig, SynthReport, already_made, synthesize
from affectrace.datasets.synthetic.affect_signal import (
    FACE_ONLY,
    MEMORYLESS,
    ORACLE,
    RATE_HZ,
    AffectSignal,
    draw_signal,
    oracle_scores,
    read_at,
)
from affectrace.datasets.synthetic.speech import (
    PLACES,
    WORDS,
    SpeakingStyle,
    VocalTract,
    draw_word,
    plan_speech,
    speak,
    transcript_lines,
)
from affectrace.datasets.synthetic.speech import RATE_HZ as SOUND_HZ
from affectrace.datasets.synthetic.synthesis import SAMPLE, TEST_LIST, draw_plans
from affectrace.errors import InputError
from affectrace.media.video import open_video

CONFIG = SynthConfig(recordings=6, seconds=2.5, size=64, seed=3, two_person=0.34, test=0.2, missing=0.4, unlabelled=0.3)
SMALL = replace(CONFIG, recordings=2, seconds=2.0, two_person=0.0, test=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SynthReport:
    return synthesize(tmp_path_factory.mktemp("synth") / "data", CONFIG)


@pytest.fixture(scope="module")
def record(made: SynthReport) -> dict[str, Any]:
    return dict(json.loads((made.root / "synth.json").read_text()))


def truth(root: Path, trial: str) -> np.ndarray:
    return np.genfromtxt(root / "truth" / f"{trial}.csv", delimiter=",", names=True)


# ---- the tree


def test_rates_are_odd(made: SynthReport, record: dict[str, Any]) -> None:
    rates = {entry["rate"]: made.root / entry["video"] for entry in record["trials"].values()}
    assert set(rates) == {"30", "24000/1001", "25", "30000/1001", "15", "variable"}
    steps = np.unique(np.diff(open_video(rates["variable"]).timeline.times).round(4))
    assert steps.tolist() == [0.0333, 0.0417]


def test_the_reader_of_the_real_data_reads_it(made: SynthReport, record: dict[str, Any]) -> None:
    manifest, problems = read_aff_wild2(made.root)
    assert manifest.synthetic
    assert all(is_generated([name]) for name in made.trials)
    assert {recording.id: recording.split for recording in manifest} == made.trials
    odd = [n for n, e in record["trials"].items() if e["rows"] != e["frames"] and e["split"] != "test"]
    assert sorted(Path(problem.file).stem for problem in problems) == sorted(odd)  # and nothing else is wrong
    tests = [name for name, split in made.trials.items() if split == "test"]
    assert (made.root / TEST_LIST).read_text().split() == tests
    header, *rows = (made.root / SAMPLE).read_text().splitlines()
    assert (header, rows[0]) == ("image_location,valence,arousal", f"{tests[0]}/00001.jpg,0,0")
    assert len(rows) == sum(len(truth(made.root, name)) for name in tests)


# ---- reproducible, and whole or not at all


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_seed_makes_the_same_bytes_with_any_number_of_jobs(tmp_path: Path) -> None:
    for name, jobs in (("a", 1), ("b", 2)):
        synthesize(tmp_path / name, SMALL, jobs=jobs)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    drives = [draw_plans(replace(SMALL, seed=seed))[0].trials[0].signals[0].drive for seed in (3, 4)]
    assert not np.array_equal(*drives)


# ---- signals and oracles


def test_a_signal_is_smooth_and_its_label_remembers() -> None:
    signal = draw_signal(60.0, 2.0, np.random.default_rng(0))
    assert np.abs(signal.drive).max() < 1
    assert signal.drive.std() > 0.3
    assert np.abs(np.diff(signal.drive)).max() * RATE_HZ < 3  # per second
    expected, kept = signal.drive.copy(), np.exp(-1 / (RATE_HZ * 2.0))
    for i in range(1, expected.size):  # the integral, written as its definition
        expected[i] = (1 - kept) * signal.drive[i] + kept * expected[i - 1]
    assert np.allclose(signal.label, expected)
    forgetful = draw_signal(5.0, 0.0, np.random.default_rng(0))
    assert np.array_equal(forgetful.label, forgetful.drive)


def test_the_drive_rests_while_the_face_is_missing_and_the_label_goes_on() -> None:
    signal = draw_signal(20.0, 2.0, np.random.default_rng(1), frozen=((5.0, 8.0),))
    times = np.linspace(5.05, 7.9, 20)
    assert np.ptp(signal.drive_at(times)) < 1e-9
    assert np.ptp(read_at(signal.label, times)) > 0.02


@pytest.mark.parametrize(
    "valence_in, arousal_in", [(("visual",), ("audio",)), (("text",), ("visual",)), (("audio",), ("text",))]
)
def test_signals_are_planted_where_asked_and_decoys_elsewhere(
    valence_in: tuple[str, ...], arousal_in: tuple[str, ...]
) -> None:
    for plan in draw_plans(replace(CONFIG, valence_in=valence_in, arousal_in=arousal_in)):
        for trial in plan.trials:
            style, (valence, arousal) = trial.style, trial.signals
            for modality, (shows_valence, shows_arousal) in {
                "visual": trial.face,
                "audio": (style.voice_valence, style.voice_arousal),
                "text": (style.word_valence, style.word_arousal),
            }.items():
                assert (shows_valence is valence) == (modality in valence_in)
                assert (shows_arousal is arousal) == (modality in arousal_in)


def test_face_voice_and_words_are_accepted_names(record: dict[str, Any], tmp_path: Path) -> None:
    named = replace(CONFIG, valence_in=("face", "words"), arousal_in=("voice", "audio"))
    assert (named.valence_in, named.arousal_in) == (("visual", "text"), ("audio",))
    earlier = record["config"] | {"valence_in": ["face", "words"], "arousal_in": ["face", "voice"]}
    (tmp_path / "synth.json").write_text(json.dumps(record | {"config": earlier}))
    assert already_made(tmp_path, CONFIG) is not None


def test_oracles_are_ordered_and_know_no_more_than_is_shown(made: SynthReport) -> None:
    for dimension in ("valence", "arousal"):
        scores = [made.oracle[judge][dimension] for judge in (ORACLE, MEMORYLESS, FACE_ONLY)]
        assert scores[0] > 0.9999
        assert scores[0] > scores[1] > scores[2]
    target = np.random.default_rng(0).uniform(-0.8, 0.8, (500, 2))
    ones = np.ones(500, bool)
    noisy = target + 0.3 * np.random.default_rng(1).standard_normal((500, 2))
    trial = {"target": target, "exact": noisy, "drives": target, "valid": ones, "face": ones}
    scores = oracle_scores([trial], (False, True))
    assert scores[FACE_ONLY] == {"valence": 0.0, "arousal": pytest.approx(1.0)}
    assert scores[MEMORYLESS]["valence"] == pytest.approx(1.0)
    assert scores[ORACLE]["valence"] < 0.9  # noise of the labels


# ---- speech


def spoken(arousal: float, seconds: float = 6.0, voice: str = "formant"):  # type: ignore[no-untyped-def]
    n = round(seconds * RATE_HZ) + 1
    neutral, level = (AffectSignal(np.full(n, v), np.full(n, v)) for v in (0.0, arousal))
    style = SpeakingStyle(neutral, None, level, None)
    rng = np.random.default_rng(5)
    sentences = plan_speech(style, seconds, ((0.0, seconds),), rng)
    return speak(sentences, style, VocalTract(120.0, 1.0), seconds, voice, rng)


def pitch_hz(sound: np.ndarray) -> float:
    """The strongest period of the loudest stretches."""
    found = []
    for start in range(0, sound.size - 1600, 800):
        piece = sound[start : start + 1600].astype(float)
        if np.sqrt((piece**2).mean()) < 0.6 * np.sqrt((sound**2).mean()):
            continue
        low, high = SOUND_HZ // 350, SOUND_HZ // 60
        kept = np.correlate(piece, piece, "full")[1600 - 1 :]
        found.append(SOUND_HZ / (low + int(np.argmax(kept[low:high]))))
    return float(np.median(found))


@pytest.mark.parametrize("voice", ["formant", "espeak"])
def test_pitch_and_loudness_follow_arousal_and_words_have_their_times(voice: str) -> None:
    if voice == "espeak" and shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    calm, excited = (spoken(a, voice=voice) for a in (-0.8, 0.8))
    assert np.abs(excited[0]).max() > 2 * np.abs(calm[0]).max()
    assert pitch_hz(excited[0]) > 1.3 * pitch_hz(calm[0])
    if voice == "formant":
        assert pitch_hz(calm[0]) == pytest.approx(120 * 2 ** (-0.55 * 0.8), rel=0.08)
        assert sum(map(len, excited[1])) > 1.3 * sum(map(len, calm[1]))
    for sound, sentences in (calm, excited):
        words = [word for sentence in sentences for word in sentence]
        assert all(a.end_s <= b.start_s for a, b in pairwise(words))
        for word in words:
            assert np.abs(sound[round(word.start_s * SOUND_HZ) : round(word.end_s * SOUND_HZ)]).max() > 0.004
        first, line = sentences[0], transcript_lines(sentences).splitlines()[0]
        assert line.startswith(f"[{first[0].start_s:.2f}s - {first[-1].end_s:.2f}s]: {first[0].text}")


def test_without_espeak_its_voice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="espeak-ng"):
        synthesize(tmp_path / "x", SynthConfig(voice="espeak"))


def test_words_follow_valence_and_arousal() -> None:
    rng = np.random.default_rng(0)
    place = {word: PLACES[i] for i, word in enumerate(WORDS)}
    assert len(place) == len(WORDS)  # every word has one place
    for valence in (-0.9, 0.0, 0.5, 0.9):
        drawn = [place[draw_word(valence, None, rng)][0] for _ in range(100)]
        assert np.mean(drawn) == pytest.approx(valence, abs=0.12)
    assert np.mean([place[draw_word(0.5, -0.7, rng)][1] for _ in range(50)]) < -0.5

"""Recordings with known truth: layout, conventions, planted signals, oracles, the same again from the same seed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason='needs pip install "affectrace[data]"')

import affectrace
from affectrace.datasets.aff_wild2 import read_aff_wild2
from affectrace.datasets.manifest import is_generated
from affectrace.datasets.synthetic import SynthConfig, SynthReport, synthesise
from affectrace.datasets.synthetic.affect_signal import (
    FACE_ONLY,
    MEMORYLESS,
    ORACLE,
    RATE_HZ,
    AffectSignal,
    draw_signal,
    leaky,
    oracle_scores,
    read_at,
)
from affectrace.datasets.synthetic.render import cover_at
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
from affectrace.errors import InputError, OutputError
from affectrace.media.audio import read_audio
from affectrace.media.video import open_video
from affectrace.metrics import ccc

CONFIG = SynthConfig(
    recordings=6, seconds=4.0, size=64, seed=3, two_person=0.34, test=0.2, missing=0.2, unlabelled=0.15
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SynthReport:
    return synthesise(tmp_path_factory.mktemp("synth") / "data", CONFIG)


def truth(root: Path, trial: str) -> np.ndarray:
    return np.genfromtxt(root / "truth" / f"{trial}.csv", delimiter=",", names=True)


# ---- the tree


def test_the_tree_is_complete(made: SynthReport) -> None:
    record = json.loads((made.root / "synth.json").read_text())
    assert (record["generator"], record["version"]) == ("affectrace synth", affectrace.__version__)
    assert all(is_generated([name]) for name in made.trials)
    assert read_aff_wild2(made.root)[0].synthetic
    assert set(record["trials"]) == set(made.trials)
    assert {"train", "validation", "test"} == set(made.trials.values())
    assert sum(name.endswith("_left") for name in made.trials) == 2
    for name, split in made.trials.items():
        entry = record["trials"][name]
        labels = made.root / "VA_Estimation_Challenge" / {"train": "Train_Set"}.get(split, "Validation_Set")
        assert (labels / f"{name}.txt").exists() == (split != "test")
        assert (made.root / "transcripts" / f"{name}.txt").exists()
        video = open_video(made.root / entry["video"])
        assert len(video.timeline) == entry["frames"] == len(truth(made.root, name))
        assert video.notes == ()
        assert np.allclose(video.timeline.times, truth(made.root, name)["time_s"], atol=1e-5)
    assert {Path(entry["video"]).suffix for entry in record["trials"].values()} == {".mp4", ".avi"}


def test_rates_are_odd(made: SynthReport) -> None:
    record = json.loads((made.root / "synth.json").read_text())
    rates = {entry["rate"] for entry in record["trials"].values()}
    assert {"30", "24000/1001", "25", "30000/1001", "15", "variable"} == rates
    name = next(n for n, e in record["trials"].items() if e["rate"] == "variable")
    steps = np.unique(np.diff(open_video(made.root / record["trials"][name]["video"]).timeline.times).round(4))
    assert steps.tolist() == [0.0333, 0.0417]


def test_labels_follow_the_conventions(made: SynthReport) -> None:
    record = json.loads((made.root / "synth.json").read_text())
    offsets, unlabelled = set(), 0
    for path in made.root.glob("VA_Estimation_Challenge/*/*.txt"):
        header, *rows = path.read_text().splitlines()
        entry, known = record["trials"][path.stem], truth(made.root, path.stem)
        assert header == "valence,arousal"
        assert len(rows) == entry["rows"]
        offsets.add(entry["rows"] - entry["frames"])
        values = np.array([[float(x) for x in row.split(",")] for row in rows])[: len(known)]
        known = known[: len(values)]
        marked = known["labelled"] == 1
        assert np.allclose(values[marked, 0], known["valence"][marked], atol=1e-4)
        assert np.allclose(values[marked, 1], known["arousal"][marked], atol=1e-4)
        assert (values[~marked] == -5).all()
        unlabelled += int((~marked).sum())
    assert unlabelled > 20
    assert len(offsets) > 1  # rows and frames disagree somewhere, as in the real data


def test_crops_have_gaps_where_the_face_is_missing(made: SynthReport) -> None:
    from PIL import Image

    gaps = 0
    for name in made.trials:
        face = truth(made.root, name)["face"]
        crops = sorted((made.root / "cropped_aligned" / name).iterdir())
        assert [int(p.stem) for p in crops] == (np.flatnonzero(face) + 1).tolist()
        assert Image.open(crops[0]).size == (112, 112)
        gaps += int((face == 0).sum())
    assert gaps > 20


def test_the_sound_is_as_long_as_the_pictures(made: SynthReport) -> None:
    for path in (made.root / "videos").iterdir():
        audio = read_audio(path)
        assert audio is not None
        assert not audio.silent
        assert audio.duration_s == pytest.approx(4.0, abs=0.15)


def test_test_list_and_sample_agree(made: SynthReport) -> None:
    tests = [name for name, split in made.trials.items() if split == "test"]
    assert (made.root / TEST_LIST).read_text().split() == tests
    header, *rows = (made.root / SAMPLE).read_text().splitlines()
    assert header == "image_location,valence,arousal"
    assert len(rows) == sum(len(truth(made.root, name)) for name in tests)
    assert rows[0] == f"{tests[0]}/00001.jpg,0,0"


def test_the_reader_of_the_real_data_reads_it(made: SynthReport) -> None:
    manifest, problems = read_aff_wild2(made.root)
    assert {recording.id: recording.split for recording in manifest} == made.trials
    record = json.loads((made.root / "synth.json").read_text())["trials"]
    odd = [n for n, e in record.items() if e["rows"] != e["frames"] and e["split"] != "test"]
    assert sorted(Path(problem.file).stem for problem in problems) == sorted(odd)  # and nothing else is wrong


# ---- the same again, whole or not at all


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_seed_makes_the_same_bytes_with_any_number_of_jobs(tmp_path: Path) -> None:
    small = replace(CONFIG, recordings=2, seconds=2.0, two_person=0.0, test=0.0)
    for name, config, jobs in (("a", small, 1), ("b", small, 2), ("c", replace(small, seed=4), 1)):
        synthesise(tmp_path / name, config, jobs=jobs)
    first, second, third = (contents(tmp_path / name) for name in "abc")
    assert first == second
    assert first["truth/synth_0001.csv"] != third["truth/synth_0001.csv"]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder"):
        synthesise(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(event) -> None:  # type: ignore[no-untyped-def]
        if event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path / "data", replace(CONFIG, recordings=2, seconds=2.0, test=0.0), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


# ---- signals and oracles


def test_a_signal_is_smooth_and_its_label_remembers() -> None:
    signal = draw_signal(60.0, 2.0, np.random.default_rng(0))
    assert np.abs(signal.drive).max() < 1
    assert signal.drive.std() > 0.3
    assert np.abs(np.diff(signal.drive)).max() * RATE_HZ < 3  # per second
    expected = signal.drive.copy()  # the integral, written as its definition
    for i in range(1, expected.size):
        kept = np.exp(-1 / (RATE_HZ * 2.0))
        expected[i] = (1 - kept) * signal.drive[i] + kept * expected[i - 1]
    assert np.allclose(signal.label, expected)


def test_without_memory_the_label_is_the_drive() -> None:
    drive = np.linspace(-1, 1, 50)
    assert np.array_equal(leaky(drive, 0.0), drive)


def test_the_drive_rests_while_the_face_is_missing_and_the_label_goes_on() -> None:
    signal = draw_signal(20.0, 2.0, np.random.default_rng(1), frozen=((5.0, 8.0),))
    times = np.linspace(5.05, 7.9, 20)
    assert np.ptp(signal.drive_at(times)) < 1e-9
    assert np.ptp(read_at(signal.label, times)) > 0.02


@pytest.mark.parametrize(
    "valence_in, arousal_in", [(("face",), ("voice",)), (("words",), ("face",)), (("voice",), ("words",))]
)
def test_signals_are_planted_where_asked_and_decoys_elsewhere(
    valence_in: tuple[str, ...], arousal_in: tuple[str, ...]
) -> None:
    for plan in draw_plans(replace(CONFIG, valence_in=valence_in, arousal_in=arousal_in)):
        for trial in plan.trials:
            style, (valence, arousal) = trial.style, trial.signals
            for modality, (shows_valence, shows_arousal) in {
                "face": trial.face,
                "voice": (style.voice_valence, style.voice_arousal),
                "words": (style.word_valence, style.word_arousal),
            }.items():
                assert (shows_valence is valence) == (modality in valence_in)
                assert (shows_arousal is arousal) == (modality in arousal_in)


def test_oracles_are_ordered(made: SynthReport) -> None:
    for dimension in ("valence", "arousal"):
        scores = [made.oracle[judge][dimension] for judge in (ORACLE, MEMORYLESS, FACE_ONLY)]
        assert scores[0] > 0.9999
        assert scores[0] > scores[1] > scores[2]


def test_a_face_that_shows_a_decoy_tells_nothing() -> None:
    target = np.random.default_rng(0).uniform(-0.8, 0.8, (500, 2))
    ones = np.ones(500, bool)
    trial = {"target": target, "exact": target, "drives": target, "valid": ones, "face": ones}
    scores = oracle_scores([trial], (False, True))
    assert scores[FACE_ONLY] == {"valence": 0.0, "arousal": pytest.approx(1.0)}
    assert scores[MEMORYLESS]["valence"] == pytest.approx(1.0)


def test_label_noise_lowers_the_oracle() -> None:
    target = np.random.default_rng(0).uniform(-0.8, 0.8, (500, 2))
    exact = target + 0.3 * np.random.default_rng(1).standard_normal((500, 2))
    ones = np.ones(500, bool)
    trial = {"target": target, "exact": exact, "drives": exact, "valid": ones, "face": ones}
    scores = oracle_scores([trial])
    assert scores[ORACLE]["valence"] == pytest.approx(ccc(exact[:, 0], target[:, 0]))
    assert scores[ORACLE]["valence"] < 0.9


@pytest.mark.parametrize("t, cover", [(0.5, 0.0), (0.9, 0.5), (1.0, 1.0), (1.5, 1.0), (2.1, 0.5), (2.3, 0.0)])
def test_covers_slide(t: float, cover: float) -> None:
    assert cover_at(np.array([t]), ((1.0, 2.0),)) == pytest.approx([cover])
    assert cover_at(np.array([t]), ()) == [0.0]


# ---- speech


def spoken(arousal: float, valence: float = 0.0, seconds: float = 8.0, voice: str = "formant"):  # type: ignore[no-untyped-def]
    n = round(seconds * RATE_HZ) + 1
    still, level = (AffectSignal(np.full(n, v), np.full(n, v)) for v in (valence, arousal))
    style = SpeakingStyle(still, None, level, None)
    rng = np.random.default_rng(5)
    sentences = plan_speech(style, seconds, ((0.0, seconds),), rng)
    return speak(sentences, style, VocalTract(120.0, 1.0), seconds, voice, rng)


def pitch_hz(sound: np.ndarray) -> float:
    """The strongest period of the loudest stretches."""
    found = []
    for start in range(0, sound.size - 1600, 800):
        piece = sound[start : start + 1600].astype(float)
        if np.sqrt((piece**2).mean()) < 0.3 * np.sqrt((sound**2).mean()) * 2:
            continue
        kept = np.correlate(piece, piece, "full")[1600 - 1 :]
        low, high = SOUND_HZ // 350, SOUND_HZ // 60
        found.append(SOUND_HZ / (low + int(np.argmax(kept[low:high]))))
    return float(np.median(found))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_follows_arousal_and_keeps_its_own_times() -> None:
    (calm, quiet), (excited, loud) = (spoken(a, seconds=6.0, voice="espeak") for a in (-0.8, 0.8))
    assert calm.shape == excited.shape == (6 * SOUND_HZ,)
    assert np.abs(excited).max() > 2 * np.abs(calm).max()
    assert pitch_hz(excited) > 1.3 * pitch_hz(calm)
    for sound, sentences in ((calm, quiet), (excited, loud)):
        words = [word for sentence in sentences for word in sentence]
        assert words
        assert all(a.end_s <= b.start_s for a, b in pairwise(words))
        for word in words:
            assert np.abs(sound[round(word.start_s * SOUND_HZ) : round(word.end_s * SOUND_HZ)]).max() > 0.01


def test_espeak_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("affectrace.datasets.synthetic.speech.shutil.which", lambda _: None)
    with pytest.raises(InputError, match="espeak-ng"):
        synthesise(tmp_path / "x", SynthConfig(voice="espeak"))


def test_pitch_loudness_and_rate_follow_arousal() -> None:
    calm, excited = spoken(-0.8), spoken(0.8)
    assert pitch_hz(calm[0]) == pytest.approx(120 * 2 ** (-0.55 * 0.8), rel=0.08)
    assert pitch_hz(excited[0]) == pytest.approx(120 * 2 ** (0.55 * 0.8), rel=0.08)
    assert np.abs(excited[0]).max() > 3 * np.abs(calm[0]).max()
    words = [sum(len(sentence) for sentence in said) for _, said in (calm, excited)]
    assert words[1] > 1.3 * words[0]


def test_words_follow_valence() -> None:
    rng = np.random.default_rng(0)
    place = {word: PLACES[i] for i, word in enumerate(WORDS)}
    assert len(place) == len(WORDS)  # every word has one place
    for valence in (-0.9, -0.5, 0.0, 0.5, 0.9):
        drawn = [place[draw_word(valence, None, rng)][0] for _ in range(100)]
        assert np.mean(drawn) == pytest.approx(valence, abs=0.12)
    calm = [place[draw_word(0.5, -0.7, rng)][1] for _ in range(50)]
    assert np.mean(calm) < -0.5


def test_words_have_their_times_in_the_transcript() -> None:
    sound, said = spoken(0.0)
    lines = transcript_lines(said).splitlines()
    assert len(lines) == len(said)
    assert lines[0].startswith(f"[{said[0][0].start_s:.2f}s - {said[0][-1].end_s:.2f}s]: {said[0][0].text}")
    ends = [(word.start_s, word.end_s) for sentence in said for word in sentence]
    assert all(a[1] <= b[0] for a, b in pairwise(ends))
    quiet = sound[: round((said[0][0].start_s - 0.05) * SOUND_HZ)]
    assert np.abs(quiet).max(initial=0) < 0.01


def test_nothing_said_is_silence() -> None:
    level = AffectSignal(np.zeros(201), np.zeros(201))
    style = SpeakingStyle(level, None, level, None)
    sound, said = speak([], style, VocalTract(120.0, 1.0), 1.0, "formant", np.random.default_rng(0))
    assert sound.shape == (SOUND_HZ,)
    assert not sound.any()
    assert transcript_lines(said) == ""

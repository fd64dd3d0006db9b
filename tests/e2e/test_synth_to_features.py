"""From nothing to what models train on: synth, then extract with small encoders, from video files to sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason='needs pip install "affectrace[data]"')

import tiny_encoders as tiny
from affectrace import cli
from affectrace.datasets import open_dataset, read_labels
from affectrace.features.store import FeatureStore
from affectrace.recording import Recording
from affectrace.sequences import Sequence, SequenceConfig, open_sequences
from affectrace.trace import Trace

pytestmark = pytest.mark.weights  # face mesh, voice activity, MiniLM

SIZES = ("--recordings", "3", "--seconds", "6", "--size", "192", "--two-person", "0.34", "--seed", "5", "--jobs", "1")
Run = Callable[..., Any]
STREAMS = {
    "visual": "mae-vit-b",
    "face": "mesh-geometry",
    "audio": "hubert-base",
    "voice": "prosody",
    "text": "minilm-l6",
}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The data set, its features in `features` below it, and the command that made them."""
    root = tmp_path_factory.mktemp("line")
    data = root / "data"
    assert cli.main(["synth", str(data), *SIZES, "--missing", "0.2", "--quiet"]) == 0
    mae, hubert = tiny.mae(root / "mae"), tiny.hubert(root / "hubert")
    names = f"mae-vit-b={mae},mesh-geometry,hubert-base={hubert},prosody,minilm-l6"
    argv = ["extract", str(data), "--features", names, "--out", str(root / "features"), "--device", "cpu"]
    assert cli.main([*argv, "--quiet"]) == 0
    return root, argv


@pytest.fixture(scope="module")
def opened(extracted: tuple[Path, list[str]]) -> list[tuple[Recording, Sequence, np.ndarray]]:
    """Every labelled recording, its sequence on the frame clock, and the truth it was made from."""
    root, _ = extracted
    manifest, _ = open_dataset(root / "data")
    recordings = [r for r in manifest if r.labels is not None]
    sequences = open_sequences(recordings, manifest, FeatureStore(root / "features"), STREAMS, SequenceConfig())
    truths = [np.genfromtxt(root / "data/truth" / f"{r.id}.csv", delimiter=",", names=True) for r in recordings]
    return list(zip(recordings, sequences, truths, strict=True))


def test_every_recording_has_every_feature_on_its_own_clock(extracted: tuple[Path, list[str]]) -> None:
    root, _ = extracted
    store, (manifest, _) = FeatureStore(root / "features"), open_dataset(root / "data")
    assert len(manifest) == 4  # three videos, one with two people
    assert set(store.extractors) == set(STREAMS.values())
    widths = {"mae-vit-b": 32, "mesh-geometry": 9, "hubert-base": 32, "prosody": 5, "minilm-l6": 384}
    for recording in manifest:
        of = {name: store.get(name, recording.id) for name in widths}
        assert {name: f.dim for name, f in of.items()} == widths
        assert len(of["mae-vit-b"]) == len(of["mesh-geometry"]) == manifest.n_frames[recording.id]
        assert of["mae-vit-b"].timeline == of["mesh-geometry"].timeline
        assert len(of["hubert-base"]) == pytest.approx(50 * 6, abs=2)
        assert len(of["prosody"]) == pytest.approx(100 * 6, abs=5)


def test_sequences_carry_the_labels_and_the_gaps(opened: list[tuple[Recording, Sequence, np.ndarray]]) -> None:
    for recording, sequence, truth in opened:
        piece = sequence.read()
        assert len(piece) == len(truth)
        assert np.allclose(piece.times["frame"], truth["time_s"], atol=1e-5)
        rows = np.flatnonzero(piece.mask.all(axis=1))
        assert set(rows) <= set(np.flatnonzero(truth["labelled"]))  # a row may be missing at the end
        assert len(rows) >= truth["labelled"].sum() - 2
        assert np.allclose(piece.target[rows, 0], truth["valence"][rows], atol=1e-4)
        assert np.allclose(piece.target[rows, 1], truth["arousal"][rows], atol=1e-4)
        hidden = truth["face"] == 0
        assert hidden.any()
        assert np.array_equal(piece.valid["visual"], ~hidden), recording.id  # crops are there when the face is
        assert piece.mask[hidden].any()  # labels go on
        assert (piece.valid["face"] == ~hidden).mean() > 0.85
        assert not piece.inputs["visual"][hidden].any()
        assert all(np.isfinite(x).all() for x in piece.inputs.values())
        assert piece.valid["audio"].mean() > 0.95


def test_faces_show_what_was_planted(opened: list[tuple[Recording, Sequence, np.ndarray]]) -> None:
    """Smile and eyes in the mesh follow the drives of the very person whose labels they stand beside."""
    found = {}
    for recording, sequence, truth in opened:
        piece = sequence.read()
        seen = piece.valid["face"]
        mesh, columns = piece.inputs["face"][seen].astype(float), ("mouth_width", "corner_lift")
        names = list(sequence.inputs["face"].extractor.columns)
        drive = truth["valence_drive"][seen]
        found[recording.id] = max(np.corrcoef(mesh[:, names.index(c)], drive)[0, 1] for c in columns)
    assert min(found.values()) > 0.5, found
    assert np.mean(list(found.values())) > 0.75, found


def test_extracting_again_makes_nothing(extracted: tuple[Path, list[str]], run_json: Run) -> None:
    root, argv = extracted
    before = {p: p.stat().st_mtime_ns for p in (root / "features").rglob("*.safetensors")}
    told = run_json(*argv)
    assert (told["made"], told["kept"], told["failed"]) == (0, 20, {})
    assert {p: p.stat().st_mtime_ns for p in (root / "features").rglob("*.safetensors")} == before


def test_labels_of_the_tree_are_those_of_the_features_clock(extracted: tuple[Path, list[str]]) -> None:
    root, _ = extracted
    manifest, _ = open_dataset(root / "data")
    store = FeatureStore(root / "features")
    for recording in manifest.of_split("validation"):
        clock = store.get("mesh-geometry", recording.id).timeline
        assert read_labels(manifest, recording).timeline == clock  # of the video itself


def test_what_is_trained_on_made_recordings_says_so(
    extracted: tuple[Path, list[str]], tmp_path: Path, run_json: Run, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported, trained, predicted, scored: the name of Aff-Wild2 is nowhere, and it is not shared under it."""
    root, _ = extracted
    assert cli.main(["import", str(root / "data"), "--out", str(tmp_path / "set")]) == 0
    assert "synthetic recordings of `affectrace synth`" in capsys.readouterr().err
    data = ["--data", str(tmp_path / "set"), "--store", str(root / "features")]
    steps = ["--epochs", "1", "--warmup-epochs", "0", "--window.size", "60", "--window.stride", "60"]
    run = ["train", "gru", *data, "--features", "mesh-geometry", "--out", str(tmp_path / "run"), "--preset", "tiny"]
    assert cli.main([*run, *steps, "--accelerator", "cpu"]) == 0
    assert "synthetic recordings" in capsys.readouterr().err
    best = tmp_path / "run" / "best"
    about = json.loads((best / "config.json").read_text())["extra"]
    assert (about["data"]["name"], about["data"]["synthetic"]) == ("affectrace-synthetic", True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == about["data"]
    card = (best / "README.md").read_text()
    assert "say nothing about real people" in card
    assert "non-commercial" not in card
    video = min((root / "data" / "videos").glob("*.mp4"))
    predict = ["predict", video, "--model", best, "--person", "all", "--out", tmp_path / "o", "--report"]
    (result,) = run_json(*predict)["results"]
    trace = Trace.load(result["csv"])
    assert trace.provenance["model"]["data"] == about["data"]
    scored = trace.provenance["model"]["validation"]
    assert scored["ccc_valence"] == about["validation"]["ccc_valence"]
    assert (scored["n_recordings"], scored["chosen"]) == (len(about["recordings"]["validation"]), True)
    assert any("trained on synthetic recordings" in note for note in trace.provenance["notes"])
    page = Path(result["report"]).read_text()
    assert f"{scored['n_recordings']} recording" in page
    assert "neither this score nor these values say anything of real people" in page
    assert run_json("evaluate", best, *data, "--draws", 20)["data"]["synthetic"] is True
    assert "was trained on synthetic recordings" in refused("push", best, "me/mamba-aff-wild2")

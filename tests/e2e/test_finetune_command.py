"""`affectrace finetune` from the command line: tunes, plugs into `extract`, repeats, and says mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_faces as made
from affectrace.cli import main
from affectrace.datasets.manifest import Manifest
from affectrace.features import registry
from affectrace.features.store import FeatureStore
from affectrace.finetune.face_crops import CropConfig, cut_crops
from affectrace.media.images import read_image
from affectrace.recording import Recording

SMALL = ("--batch-size", 16, "--lr", 0.002, "--frozen-blocks", 1, "--accelerator", "cpu", "--epochs", 1)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "example.mp4"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    manifest = made.made_set(tmp_path_factory.mktemp("faces"), n=24, train=2)
    manifest.save(manifest.root / "manifest.json")
    return manifest


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.encoder_folder(tmp_path_factory.mktemp("vit"))


def run(*args: object) -> int:
    return main(["finetune", *(str(a) for a in args)])


def said(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*args, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_tune_then_extract(faces: Manifest, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned"
    found = said(capsys, f"mae-vit-l={start}", "--data", faces.root, "--out", out, *SMALL)
    assert found["best"] == str(out / "best")
    features = tmp_path / "features"
    asked = f"mae-vit-l={out / 'best'}"
    assert main(["extract", str(faces.root), "--features", asked, "--out", str(features), "--fps", "25"]) == 0
    extractor: Any = registry.load_one(asked)
    store = FeatureStore(features).get("mae-vit-l", "r0")
    folder = faces["r0"].crops
    assert folder is not None
    pictures = np.stack([read_image(p) for p in sorted(folder.glob("*.png"))])
    np.testing.assert_allclose(store.read(slice(None))[np.asarray(store.valid)], extractor.measure(pictures), atol=1e-5)
    before: Any = registry.load_one(f"mae-vit-l={start}")
    assert np.abs(before.measure(pictures) - extractor.measure(pictures)).max() > 1e-3
    # the options it wrote repeat the run
    again = tmp_path / "again"
    assert run("--config", out / "options.json", "--out", again, "--quiet") == 0
    assert (again / "log.jsonl").read_bytes() == (out / "log.jsonl").read_bytes()
    assert run("--config", out / "options.json", "--resume", "--quiet") == 0


def test_expressions_and_mae(faces: Manifest, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = f"mae-vit-l={start}"
    more = ("--objective", "expression", "--expressions", "column:mood")
    found = said(capsys, encoder, "--data", faces.root, "--out", tmp_path / "classes", *SMALL, *more)
    assert found["score"] == "macro_f1"
    # folders of crops that nobody labelled
    crops = faces.root / "crops"
    found = said(capsys, encoder, "--data", crops, "--out", tmp_path / "mae", *SMALL, "--objective", "mae")
    assert found["score"] == "reconstruction_loss"
    run_file = json.loads((tmp_path / "mae" / "run.json").read_text())
    assert run_file["items"] == {"training": 46, "validation": 23}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--frozen-blocks", "9"), "frozen_blocks is 9, the encoder has 3 blocks; use 0 to 3"),
        (("--objective", "expression"), "--expressions: needs labels"),
        (("--expressions", "column:mood"), "--expressions: is not for --objective va"),
        (("--data", "/nowhere"), "/nowhere: no such data set; check the path"),
        (("--objective", "mae", "--data", "/nowhere"), "/nowhere"),
        (("--epochs", "0"), "epochs and batch_size: at least 1"),
    ],
)
def test_mistakes_cost_one_line(
    faces: Manifest,
    start: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert run(f"mae-vit-l={start}", "--data", faces.root, "--out", out, *args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in " ".join(lines)
    assert not out.exists()


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("mae-vit-x", "unknown encoder 'mae-vit-x'; did you mean"),
        ("fer", "'fer' cannot be tuned"),
        ("mae-vit-l=/nowhere", "no such folder"),
    ],
)
def test_wrong_encoders_cost_one_line(
    faces: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: str, message: str
) -> None:
    assert run(encoder, "--data", faces.root, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_unlabelled_recordings_cost_one_line(
    faces: Manifest, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    bare = faces.with_recordings([replace(r, labels=None) for r in faces])
    path = bare.save(tmp_path / "manifest.json")
    assert run(f"mae-vit-l={start}", "--data", path, "--out", tmp_path / "out") == 2
    assert "the training recordings hold no labelled row; check the split, the labels" in capsys.readouterr().err


@pytest.mark.weights
def test_crops_of_a_video_are_what_extract_reads(start: Path, tmp_path: Path) -> None:
    """Features of the crops that are cut for tuning equal those that `extract` makes of the video itself."""
    recording = Recording("example", video=EXAMPLE)
    extractor: Any = registry.load_one(f"mae-vit-l={start}")
    how = CropConfig(extractor.preprocessing.side, extractor.margin, every=5)
    folder = cut_crops(recording, tmp_path / "media", how)
    assert folder == cut_crops(recording, tmp_path / "media", how)  # there already
    assert [p.name for p in (tmp_path / "media").iterdir()] == [folder.name]
    assert main(["extract", str(EXAMPLE), "--features", f"mae-vit-l={start}", "--out", str(tmp_path / "f")]) == 0
    store = FeatureStore(tmp_path / "f").get("mae-vit-l", "example")
    values, valid = store.read(slice(None)), np.asarray(store.valid)
    frames = [int(p.stem) - 1 for p in sorted(folder.glob("*.png"))]
    assert frames == [i for i in range(0, len(valid), 5) if valid[i]]
    looks = np.stack([read_image(p) for p in sorted(folder.glob("*.png"))])
    np.testing.assert_allclose(extractor.measure(looks), values[frames], atol=1e-5)

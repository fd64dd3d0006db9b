"""`affectrace finetune` from the command line: tunes, plugs into `extract`, repeats, and says mistakes in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_media as made
from affectrace.cli import main
from affectrace.config import locked_folder
from affectrace.datasets.manifest import Manifest
from affectrace.features import registry
from affectrace.features.store import FeatureStore
from affectrace.finetune.config import ItemConfig
from affectrace.finetune.face_crops import cut_crops
from affectrace.media.images import read_image
from affectrace.recording import Recording
from command_lines import command

SMALL = ("--batch-size", 16, "--lr", 0.002, "--frozen-blocks", 1, "--accelerator", "cpu", "--epochs", 1)


def run(*args: object) -> int:
    return main(command("finetune", *args))


def said(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*args, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_tune_then_extract(faces: Manifest, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned"
    found = said(capsys, f"mae-vit-l={vit}", "--data", faces.root, "--out", out, *SMALL)
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
    before: Any = registry.load_one(f"mae-vit-l={vit}")
    assert np.abs(before.measure(pictures) - extractor.measure(pictures)).max() > 1e-3
    # the options it wrote repeat the run
    again = tmp_path / "again"
    assert run("--config", out / "options.json", "--out", again, "--quiet") == 0
    assert (again / "log.jsonl").read_bytes() == (out / "log.jsonl").read_bytes()
    assert run("--config", out / "options.json", "--resume", "--quiet") == 0


def test_expressions_and_mae(faces: Manifest, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = f"mae-vit-l={vit}"
    more = ("--objective", "expression", "--expressions", "column:mood")
    found = said(capsys, encoder, "--data", faces.root, "--out", tmp_path / "classes", *SMALL, *more)
    assert found["score"] == "macro_f1"
    # folders of crops that nobody labelled
    crops = faces.root / "crops"
    found = said(capsys, encoder, "--data", crops, "--out", tmp_path / "mae", *SMALL, "--objective", "mae")
    assert found["score"] == "reconstruction_loss"
    run_file = json.loads((tmp_path / "mae" / "run.json").read_text())
    assert run_file["items"] == {"training": 69, "validation": 23}


def test_mistakes_cost_one_line_and_leave_nothing(
    faces: Manifest, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = f"mae-vit-l={vit}", tmp_path / "out"
    bare = faces.with_recordings([replace(r, labels=None) for r in faces]).save(tmp_path / "manifest.json")
    table: list[tuple[str, tuple[object, ...], str]] = [
        (good, ("--frozen-blocks", 9), "frozen_blocks"),
        (good, ("--objective", "expression"), "--expressions"),
        (good, ("--expressions", "column:mood"), "--expressions"),
        (good, ("--data", "/nowhere"), "/nowhere"),
        (good, ("--objective", "mae", "--data", "/nowhere"), "/nowhere"),
        (good, ("--epochs", 0), "epochs"),
        (good, ("--data", bare), "no labelled row"),
        ("mae-vit-x", (), "did you mean"),
        ("fer", (), "'fer' cannot be tuned"),
        ("mae-vit-l=/nowhere", (), "no such folder"),
    ]
    for encoder, args, message in table:
        assert run(encoder, "--data", faces.root, "--out", out, *args, "--quiet") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[0]
        assert len(lines) == 1
        assert not (out / "run.json").exists()
    with locked_folder(out, "tuning"):
        assert run(good, "--data", faces.root, "--out", out) == 2
    assert "another tuning is writing here" in capsys.readouterr().err


@pytest.mark.weights
def test_crops_of_a_video_are_what_extract_reads(vit: Path, tmp_path: Path) -> None:
    """Features of the crops that are cut for tuning equal those that `extract` makes of the video itself."""
    video = made.example_excerpt(tmp_path / "example.mp4", 10, 14)  # for a while without a face
    recording = Recording("example", video=video)
    extractor: Any = registry.load_one(f"mae-vit-l={vit}")
    how = tmp_path / "media", extractor.preprocessing.side, ItemConfig(every=5)
    folder = cut_crops(recording, *how)
    assert folder == cut_crops(recording, *how)  # there already
    assert [p.name for p in (tmp_path / "media").iterdir()] == [folder.name]
    assert main(["extract", str(video), "--features", f"mae-vit-l={vit}", "--out", str(tmp_path / "f")]) == 0
    store = FeatureStore(tmp_path / "f").get("mae-vit-l", "example")
    values, valid = store.read(slice(None)), np.asarray(store.valid)
    frames = [int(p.stem) - 1 for p in sorted(folder.glob("*.png"))]
    assert frames == [i for i in range(0, len(valid), 5) if valid[i]]
    assert not valid.all()
    looks = np.stack([read_image(p) for p in sorted(folder.glob("*.png"))])
    np.testing.assert_allclose(extractor.measure(looks), values[frames], atol=1e-5)

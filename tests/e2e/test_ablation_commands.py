"""Ablations by the command line, with a checkpoint of a small MAVEN on stored features."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace import cli
from affectrace.datasets.manifest import Manifest
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.inference.attention_maps import AttentionMaps
from affectrace.models import checkpoint
from affectrace.models.maven import MavenConfig
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace

Run = Callable[..., Any]
FEATURES = {"visual": "face", "audio": "sound", "text": "words"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings with labels and three streams; checkpoints of MAVEN (three streams) and GRU (one)."""
    root = tmp_path_factory.mktemp("data")
    store, recordings = FeatureStore(root / "features"), []
    for i in range(4):
        rng, name, clock = np.random.default_rng(i), f"r{i}", Timeline.regular(60, 25)
        y = 0.7 * np.sin(np.arange(60)[:, None] / 12 + rng.uniform(0, 6, 2))
        truth = Trace(name, clock, y[:, 0], y[:, 1], np.ones(60, bool), np.full(60, ""), "labels")
        sound = Timeline.regular(120, 50)
        words = Timeline.from_times([0.2, 0.7, 1.3, 1.6], end_s=2.0)
        ends = np.array([0.6, 1.2, 1.5, 2.0])
        for extractor, modality, own, width, until in (
            ("face", "visual", clock, 12, None), ("sound", "audio", sound, 8, None), ("words", "text", words, 8, ends),
        ):  # fmt: skip
            x = rng.normal(0, 1, (len(own), width)).astype(np.float32)
            store.put(Features(modality, own, x, np.ones(len(own), bool), ExtractorId(extractor), ends=until), name)
        transcript = root / "transcripts" / f"{name}.txt"
        transcript.parent.mkdir(exist_ok=True)
        transcript.write_text("[0.2s - 2.0s]: what a lovely day\n")
        labels = truth.save(root / "labels" / f"{name}.csv")
        recordings.append(Recording(name, labels=labels, transcript=transcript, split="validation"))
    Manifest("made", root, tuple(recordings)).save(root / "manifest.json")
    torch.manual_seed(0)
    for folder, changes in (("maven", {}), ("native", {"clock": "native"})):
        maven = checkpoint.create("maven", "tiny", **changes)
        checkpoint.save(maven, root / folder, preset="tiny", extra={"features": FEATURES})
    gru = checkpoint.create("gru", "tiny", modality="visual", input_dim=12)
    checkpoint.save(gru, root / "gru", preset="tiny", extra={"features": {"visual": "face"}})
    assert MavenConfig.tiny().input_dims == (12, 8, 8)
    return root


def options(tree: Path, data: Path | None = None) -> list[Any]:
    return ["--data", data or tree, "--store", tree / "features"]


@pytest.mark.parametrize("which", ["maven", "native"])
def test_evaluate_without_modalities(tree: Path, tmp_path: Path, run_json: Run, which: str) -> None:
    base = ["evaluate", tree / which, *options(tree), "--draws", 20]
    everything = run_json(*base, "--modalities", "--out", tmp_path / "scores.json")
    quiet = run_json(*base, "--drop", "audio")
    assert quiet["pooled"] != everything["pooled"]
    table = {tuple(row["kept"]): row for row in everything["modalities"]["subsets"]}
    assert len(table) == 7
    assert table["visual", "audio", "text"]["scores"]["mean_ccc"] == pytest.approx(everything["pooled"]["mean_ccc"])
    assert table["visual", "text"]["scores"]["mean_ccc"] == pytest.approx(quiet["pooled"]["mean_ccc"])
    assert json.loads((tmp_path / "scores.json").read_text())["modalities"] == everything["modalities"]
    two = run_json(*base, "--drop", "voice", "--modalities")
    assert [row["kept"] for row in two["modalities"]["subsets"]] == [["visual"], ["text"], ["visual", "text"]]
    assert two["modalities"]["subsets"][0]["scores"] == table["visual",]["scores"]


@pytest.mark.parametrize("synthetic", [None, False, True])
def test_the_table_of_modalities_has_mavens_own_beside_it_on_aff_wild2_alone(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], synthetic: bool | None
) -> None:
    data = tree if synthetic is None else as_aff_wild2(tree, tmp_path / "set", synthetic)
    base = ["evaluate", tree / "maven", *options(tree, data), "--draws", 20, "--modalities"]
    assert cli.main([str(a) for a in base]) == 0
    shown = capsys.readouterr()
    assert "visual + audio + text" in shown.out
    assert "masked, not retrained" in shown.err
    assert "note: only 4 recordings: intervals over so few are rough" in shown.err
    assert ("text: MAVEN, CVPR 2025 workshops, Table 2" in shown.out) == (synthetic is False)
    assert ("the paper does not say which set" in shown.err) == (synthetic is False)
    assert ("recordings of `affectrace synth`" in shown.err) == (synthetic is True)


def as_aff_wild2(tree: Path, out: Path, synthetic: bool) -> Path:
    """The same labels as rows of Aff-Wild2, in a set that bears its name (or was made)."""
    recordings = []
    out.mkdir()
    for recording in Manifest.load(tree):
        assert recording.labels is not None
        rows = "".join(f"{v},{a}\n" for v, a in Trace.load(recording.labels).values)
        (out / f"{recording.id}.txt").write_text("valence,arousal\n" + rows)
        recordings.append(replace(recording, labels=out / f"{recording.id}.txt"))
    counts = dict.fromkeys((r.id for r in recordings), 60)
    Manifest("aff-wild2", out, tuple(recordings), "aff-wild2", counts, synthetic).save(out / "manifest.json")
    return out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gru", "--drop", "visual"], "gru reads one modality (visual)"),
        (["gru", "--modalities"], "gru reads one modality"),
        (["maven", "--drop", "sound"], "unknown modality 'sound'"),
        (["maven", "--drop", "audio", "text", "visual"], "all modalities are dropped"),
        (["labels", "--drop", "audio"], "only a checkpoint can be run without a modality"),
    ],
)
def test_what_cannot_be_dropped_is_said(tree: Path, refused: Run, given: list[str], message: str) -> None:
    assert message in refused("evaluate", tree / given[0], *options(tree), *given[1:])


def test_inter_rater_agreement_stands_beside_the_model(
    tree: Path, tmp_path: Path, run_json: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two raters who are the labels and their negative; then one, who has nobody to be compared with."""
    root = tmp_path / "rated"
    recordings = []
    for i in range(4):
        own = Trace.load(tree / "labels" / f"r{i}.csv")
        recordings.append(Recording(f"r{i}", labels=own.save(root / "labels" / f"r{i}.csv"), split="validation"))
        own.save(root / "raters" / "ann" / f"r{i}.parquet")
        close = np.clip(own.values * 0.9, -1, 1)
        other = Trace(own.recording_id, own.timeline, close[:, 0], -close[:, 1], own.valid, own.reason, "labels")
        other.save(root / "raters" / "bob" / f"r{i}.parquet")
    Manifest("rated", root, tuple(recordings)).save(root / "manifest.json")
    base = ["evaluate", tree / "maven", *options(tree, root), "--draws", 20]
    found = run_json(*base)["human"]
    assert found["pooled"]["n_raters"] == 2
    assert found["pooled"]["ccc_valence"] > 0.9
    assert found["pooled"]["ccc_arousal"] < -0.7
    assert set(found["raters"]) == {"ann", "bob"}
    assert found["intervals"]["ccc_valence"]["n_draws"] == 20
    assert cli.main([str(a) for a in base]) == 0
    shown = capsys.readouterr()
    assert "inter-rater agreement: valence" in shown.out
    for file in (root / "raters" / "bob").iterdir():
        file.unlink()
    assert "human" not in run_json(*base)


@pytest.mark.parametrize("which", ["maven", "native"])
def test_attention_writes_maps_words_shares_and_a_report(tree: Path, tmp_path: Path, run_json: Run, which: str) -> None:
    found = run_json("attention", tree / which, *options(tree), "--out", tmp_path, "--recording", "r0", "r2")
    assert set(found) == {"r0", "r2"}
    maps = AttentionMaps.load(found["r0"]["maps"])
    assert [w.text for w in maps.words] == ["what", "a", "lovely", "day"]
    assert len(maps.pathways) == 6
    rows = list(csv.DictReader(Path(found["r0"]["looked_at"]).read_text().splitlines()))
    assert {r["word"] for r in rows if r["keys"] == "text"} <= {"what", "a", "lovely", "day"}
    trace = Trace.load(found["r0"]["trace"])
    shares = sum(trace.extras[f"share_{m}"] for m in FEATURES)
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    page = Path(found["r0"]["report"]).read_text()
    assert "Attention between modalities" in page
    assert "lovely" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gru", "--recording", "r0"], "gru has no attention between modalities"),
        (["maven", "--recording", "r9"], "unknown recording 'r9'"),
        (["maven"], "no recording given"),
        (["maven", "--recording", "r0", "--start-s", "77"], "no frame between 77"),
    ],
)
def test_attention_says_what_is_wrong(tree: Path, tmp_path: Path, refused: Run, given: list[str], message: str) -> None:
    assert message in refused("attention", tree / given[0], *options(tree), "--out", tmp_path, *given[1:])
    assert not list(tmp_path.iterdir())


def test_an_ensemble_is_ablated_as_one(tree: Path, run_json: Run) -> None:
    base = ["evaluate", tree / "maven", tree / "native", "--ensemble", *options(tree), "--draws", 20]
    everything, quiet = run_json(*base, "--modalities"), run_json(*base, "--drop", "audio")
    table = {tuple(row["kept"]): row["scores"]["mean_ccc"] for row in everything["modalities"]["subsets"]}
    assert len(table) == 7
    assert table["visual", "audio", "text"] == pytest.approx(everything["pooled"]["mean_ccc"])
    assert table["visual", "text"] == pytest.approx(quiet["pooled"]["mean_ccc"])
    assert quiet["pooled"] != everything["pooled"]

"""MAVEN by the same commands as every model: three streams on their own clocks, utterances, missing modalities."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_commands import said

from affectrace.datasets.manifest import Manifest
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.models import checkpoint
from affectrace.models.maven import Maven
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace

N, RATE = 75, 25
SMALL = ["--epochs", "1", "--batch-size", "3", "--accelerator", "cpu", "--preset", "tiny"]
STREAMS = ["--features", "visual=swin", "audio=hubert", "text=roberta"]


def streams(y: Any, rng: Any, lacks: str) -> list[Features]:
    """Valence in the words, arousal in the sound, both faintly in the face; what is lacking has no rows."""
    clock, fast = Timeline.regular(N, RATE), Timeline.regular(2 * N, 2 * RATE)
    starts = np.arange(6) * 0.5 + 0.1
    words = Timeline.from_times(starts, end_s=float(starts[-1] + 0.3))
    mix = np.random.default_rng(0).normal(0, 1, (2, 12))
    at_words = y[np.minimum((starts * RATE).astype(int), N - 1), 0]
    tables = {
        "visual": (clock, 0.3 * y @ mix + rng.normal(0, 0.5, (N, 12)), None),
        "audio": (fast, np.repeat(y[:, 1:], 2, axis=0) * mix[0, :8] + rng.normal(0, 0.2, (2 * N, 8)), None),
        "text": (words, at_words[:, None] * mix[1, :8], starts + 0.3),
    }
    found = []
    for name, (timeline, x, ends) in tables.items():
        extractor = ExtractorId({"visual": "swin", "audio": "hubert", "text": "roberta"}[name])
        valid = np.ones(len(x), bool)
        if name == lacks == "visual":
            valid[:] = False
        elif name == lacks:
            timeline, x, valid = Timeline.regular(0, Fraction(1)), x[:0], valid[:0]
            ends = None if ends is None else ends[:0]
        found.append(Features(name, timeline, x.astype(np.float32), valid, extractor, ends))
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("maven")
    store, recordings = FeatureStore(root / "features"), []
    plan = [("train", ""), ("train", "text"), ("train", "audio"), ("train", "visual"), ("train", "")]
    plan += [("validation", ""), ("validation", "audio"), ("test", "text")]
    for i, (split, lacks) in enumerate(plan):
        rng, name = np.random.default_rng(i), f"r{i}"
        clock = Timeline.regular(N, RATE)
        y = 0.7 * np.sin(np.arange(N)[:, None] / 9 + rng.uniform(0, 6, 2))
        for table in streams(y, rng, lacks):
            store.put(table, name)
        (root / f"{name}.mp4").touch()
        transcript = root / f"{name}.txt"
        transcript.write_text("[0.1s - 0.9s]: one two\n[1.1s - 2.0s]: three four\n" if lacks != "text" else "")
        truth = Trace(name, clock, y[:, 0], y[:, 1], np.ones(N, bool), np.full(N, ""), "labels")
        labels = truth.save(root / "labels" / f"{name}.csv") if split != "test" else None
        recordings.append(
            Recording(
                name,
                video=root / f"{name}.mp4",
                labels=labels,
                split=split,
                transcript=None if lacks == "text" else transcript,
            )
        )
    Manifest("made", root, tuple(recordings)).save(root / "manifest.json")
    return root


@pytest.mark.parametrize(
    ("recipe", "clock"),
    [
        ("paper-38", "frame"),
        ("seed-a", "native"),
        ("authors", "utterance"),
    ],
)
def test_it_trains_and_is_scored_on_every_clock(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, clock: str
) -> None:
    data, out = ["--data", tree, "--store", tree / "features"], tmp_path / "run"
    choice = ["--recipe", recipe, "--set", f"clock={clock}", "modality_dropout=0.3"]
    done = said(capsys, "train", "maven", *data, *STREAMS, *SMALL, *choice, "--out", out)
    kept = checkpoint.load(Path(done["best"]))
    assert kept.model.config.clock == clock
    assert kept.extra["training"]["window"]["utterances"] is True
    steps = [r for r in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if r["event"] == "step"]
    assert len(steps) == 5  # four recordings in two utterances and a tail, one without words: 13 windows
    assert kept.extra["validation"]["mean_ccc"] is not None
    near = 0.02 if recipe == "seed-a" else 1e-5  # validated in bf16, scored in float32
    scores = said(capsys, "evaluate", done["best"], *data, "--draws", 20)
    assert scores["pooled"]["mean_ccc"] == pytest.approx(kept.extra["validation"]["mean_ccc"], abs=near)
    assert scores["pooled"]["n"] == 2 * N
    card = (out / "best" / "README.md").read_text()
    assert "BEiT blocks were initialised at random" in card
    for name in ("swin", "hubert", "roberta"):
        assert f"| {name} |" in card


def test_pretrained_beit_blocks_start_the_encoders_and_the_card_says_so(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra 'hub' is not installed")
    torch.manual_seed(3)
    config = transformers.BeitConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=16
    )
    transformers.BeitModel(config).save_pretrained(tmp_path / "beit")
    data = ["--data", tree, "--store", tree / "features"]
    given = ["--beit", tmp_path / "beit", "--lr", 1e-30, "--weight-decay", 0]
    done = said(capsys, "train", "maven", *data, *STREAMS, *SMALL, *given, "--out", tmp_path / "run")
    assert f"initialised from a pretrained BEiT: {tmp_path / 'beit'}" in (Path(done["best"]) / "README.md").read_text()
    ours = checkpoint.load(Path(done["best"])).model.state_dict()
    theirs = transformers.BeitModel.from_pretrained(tmp_path / "beit").state_dict()
    norms = [v for k, v in theirs.items() if k.endswith("fc1.weight") or k.endswith("intermediate.dense.weight")]
    for weight in norms:
        assert sum(torch.equal(weight, v) for v in ours.values() if v.shape == weight.shape) == 2  # both encoders
    assert len(norms) == 2


@pytest.mark.parametrize(("align", "least", "most"), [("linear", 0.1, 0.3), ("mean", 0.6, 0.95)])
def test_words_reach_the_network_as_its_configuration_says(
    tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    align: str,
    least: float,
    most: float,
) -> None:
    """Equation (12) by default; every command that runs the network feeds it as it was trained."""
    repeated: list[bool] = []  # whether a frame has the row of the frame before, of those where both are there

    def spy(name: str) -> None:
        method = getattr(Maven, name)

        def spied(self: Maven, inputs: Any, valid: Any, *args: Any, **more: Any) -> Any:
            x, there = inputs["text"], valid["text"] & valid["frame"]
            same = (x[:, 1:] == x[:, :-1]).all(dim=-1)
            repeated.extend(same[there[:, 1:] & there[:, :-1]].tolist())
            return method(self, inputs, valid, *args, **more)

        monkeypatch.setattr(Maven, name, spied)

    spy("forward")
    spy("attention_maps")
    data, out = ["--data", tree, "--store", tree / "features"], tmp_path / "run"
    whole = ["--window.no-utterances", *([] if align == "linear" else ["--set", f"align={align}"])]
    best = out / "best"
    commands: dict[str, list[object]] = {
        "train": ["maven", *data, *STREAMS, *SMALL, *whole, "--out", out],
        "evaluate": [best, *data, "--draws", 5],
        "attention": [best, *data, "--recording", "r5", "--no-report", "--out", tmp_path / "attention"],
    }
    for command, arguments in commands.items():
        if command == "train" or align == "linear":
            repeated.clear()
            said(capsys, command, *arguments)
            assert least < np.mean(repeated) < most, command
    assert checkpoint.load(best).model.config.align == align

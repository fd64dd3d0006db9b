"""Scores of the wrong features are refused: by every command that trains on stored features, scores or hands in."""

from __future__ import annotations

import json
import shutil
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
from affectrace.models import checkpoint
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace

A = ExtractorId("mae-vit-l", "aa" * 32, {"side": 224}, tuned_on={})
B = replace(A, weights_sha256="bb" * 32)
SMALL = "--epochs 2 --batch-size 3 --window.size 40 --window.stride 30 --lr .01 --warmup-epochs 0 --accelerator cpu"
TINY = (*SMALL.split(), "--validations-per-epoch", "1", "--preset", "tiny")
STREAM = ("--features", "visual=mae-vit-l")
N = 60
Run = Callable[..., Any]


def store(path: Path, made_by: dict[str, ExtractorId], shift: float = 0.0) -> Path:
    """Features of six recordings: a mixture of the labels, turned by `shift`; who made them, by recording."""
    mix, features = np.random.default_rng(0).normal(0, 1, (2, 12)), FeatureStore(path)
    for i, (name, extractor) in enumerate(made_by.items()):
        x = labels_of(i) @ np.roll(mix, round(shift), axis=1) + np.random.default_rng(i).normal(0, 0.2, (N, 12))
        features.put(
            Features("visual", Timeline.regular(N, 25), x.astype(np.float32), np.ones(N, bool), extractor), name
        )
    return path


def labels_of(i: int) -> Any:
    return 0.7 * np.sin(np.arange(N)[:, None] / 12 + np.random.default_rng(i + 50).uniform(0, 6, 2))


NAMES = [f"r{i}" for i in range(6)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled recordings; a gru of features by A; stores of A, of B and of both."""
    torch.set_num_threads(1)
    root, recordings = tmp_path_factory.mktemp("data"), []
    for i, name in enumerate(NAMES):
        y, clock = labels_of(i), Timeline.regular(N, 25)
        (root / f"{name}.mp4").touch()
        truth = Trace(name, clock, y[:, 0], y[:, 1], np.ones(N, bool), np.full(N, ""), "labels")
        labels = truth.save(root / "labels" / f"{name}.csv")
        split = "train" if i < 4 else "validation"
        recordings.append(Recording(name, video=root / f"{name}.mp4", labels=labels, split=split))
    Manifest("made", root, tuple(recordings)).save(root / "manifest.json")
    store(root / "a", dict.fromkeys(NAMES, A))
    store(root / "b", dict.fromkeys(NAMES, B), shift=3)
    store(root / "both", {n: B if n in ("r1", "r5") else A for n in NAMES})
    train = ("train", "gru", "--data", root, "--store", root / "a", "--out", root / "gru", *TINY, *STREAM)
    assert cli.main([*map(str, train), "--quiet"]) == 0
    rows = "".join(f"r5/{i:05d}.jpg,0,0\n" for i in range(1, N + 1))
    (root / "sample.txt").write_text("image_location,valence,arousal\n" + rows)
    return root


COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "gru/best", "--draws", "20"),
    "compare": ("compare", "x=gru/best", "y=gru/last", "--draws", "20"),
    "submit": ("submit", "gru/best", "--sample", "sample.txt", "--out", "handed_in.txt"),
}


def arguments(data: Path, command: str, features: str) -> list[str]:
    places = [
        part.replace("gru/", f"{data}/gru/").replace("sample.txt", f"{data}/sample.txt") for part in COMMANDS[command]
    ]
    return [*places, "--data", str(data), "--store", str(data / features)]


def warnings(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """What a command that succeeds says beside its result."""
    capsys.readouterr()
    assert cli.main([str(a) for a in args]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_features_of_other_weights_are_refused_and_named(
    command: str, data: Path, tmp_path: Path, run_json: Run, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run_json(*arguments(data, command, "a"))
    assert cli.main(arguments(data, command, "b")) == 2
    error = capsys.readouterr().err
    assert "'visual' was made by mae-vit-l (weights aaaaaaaa) in training and by mae-vit-l (weights bbbbbbbb)" in error
    assert f"make them with: affectrace extract {data} --features mae-vit-l=WEIGHTS --out" in error
    assert "--accept-features" in error
    assert "predicting" not in error  # said before any work
    # insisting marks the result
    assert cli.main([*arguments(data, command, "b"), "--accept-features", "--json"]) == 0
    found = capsys.readouterr()
    (accepted,) = {line.split(": ", 1)[1] for line in json.loads(found.out)["accepted"]}
    assert accepted.startswith("'visual' was made by mae-vit-l (weights aaaaaaaa) in training")
    assert "accepted: " in found.err


def test_windows_and_ablation_refuse_them_too(data: Path, refused: Run) -> None:
    for more in (["--modalities"], ["--windows", "30:20"]):
        assert "bbbbbbbb" in refused(*arguments(data, "evaluate", "b"), *more)


def test_features_of_several_extractors_are_refused(data: Path, tmp_path: Path, run_json: Run, refused: Run) -> None:
    where = ("--data", data, "--store", data / "both", *STREAM, *TINY)
    told = "'visual' has features of different extractors: mae-vit-l (weights aaaaaaaa) in"
    for command in (("train", "gru"), ("crossval", "gru", "--folds", "0", "--draws", "20")):
        error = refused(*command, *where, "--out", tmp_path / command[0])
        assert told in error
        assert "mae-vit-l (weights bbbbbbbb)" in error
        assert not (tmp_path / command[0]).exists()
    assert "weights bbbbbbbb" in refused(*arguments(data, "evaluate", "both"))
    run_json("train", "gru", *where, "--out", tmp_path / "marked", "--accept-features")
    kept = checkpoint.load(tmp_path / "marked" / "best").extra
    assert kept["accepted"][0].startswith(told)
    assert f"do not trust these scores:** {told}" in (tmp_path / "marked/best/README.md").read_text()


def test_older_checkpoints_and_stores_cost_one_line(
    data: Path, tmp_path: Path, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checkpoint.load(data / "gru" / "best")
    for name, extractors in (("digest", {"visual": A.digest()}), ("none", {})):
        checkpoint.save(found.model, tmp_path / name, extra={**found.extra, "extractors": extractors})
        shutil.copy(data / "gru/best/statistics.safetensors", tmp_path / name)
    where = ("--data", data, "--draws", "20", "--store")
    digest = ("evaluate", tmp_path / "digest", *where)
    assert "taken as they are" not in warnings(capsys, *digest, data / "a")
    assert "other weights or preprocessing in training" in refused(*digest, data / "b")
    told = warnings(capsys, "evaluate", tmp_path / "none", *where, data / "b")
    assert told.count("does not say what made the 'visual' features") == 1
    store(tmp_path / "old", dict.fromkeys(NAMES, ExtractorId("mae-vit-l")))
    told = warnings(capsys, "evaluate", data / "gru/best", *where, tmp_path / "old")
    assert told.count("do not say what made them (mae-vit-l): taken as they are") == 1


def test_an_encoder_tuned_on_held_out_recordings_is_refused(
    data: Path, tmp_path: Path, run_json: Run, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = replace(A, tuned_on={"data": [{"name": "made", "fold": 0}], "training": NAMES[:4], "validation": NAMES[4:]})
    store(tmp_path / "tuned", dict.fromkeys(NAMES, tuned))
    where = ("--data", data, "--store", tmp_path / "tuned")
    train = ("train", "gru", *where, *STREAM, *TINY, "--out")
    # the official split: what is held out was not tuned on
    run_json(*train, tmp_path / "official")
    card = (tmp_path / "official/best/README.md").read_text()
    assert "on 4 recordings of made (training set of fold 0); its checkpoint was selected by scores on 2" in card
    # a fold: some of it was
    error = refused(*train, tmp_path / "fold", "--fold", "1")
    assert "was tuned on" in error
    assert "tune it on this fold: affectrace finetune mae-vit-l --fold 1" in error
    crossval = ("crossval", "gru", *where, *STREAM, *TINY, "--draws", "20", "--out", tmp_path / "cv", "--folds")
    error = refused(*crossval, "1", "2")
    assert "the encoder of 'visual', mae-vit-l (weights aaaaaaaa), was tuned on" in error
    assert "tune it in every fold: affectrace crossval gru --finetune mae-vit-l;" in error
    # it was chosen by the official validation set, so that one is not clean either
    error = refused(*crossval, "0")
    assert "was chosen by its scores on 2 recordings of the held-out videos (first: r4, in made)" in error
    # insisting marks table, page and card
    assert cli.main([*map(str, crossval), "1", "--accept-features", "--json"]) == 0
    shown = capsys.readouterr()
    (fold,) = json.loads(shown.out)["folds"]
    assert "was tuned on" in fold["accepted"][0]
    assert "accepted: fold 1: the encoder of 'visual'" in shown.err
    marked = "**Trained with --accept-features; do not trust these scores:** fold 1: the encoder"
    assert marked in (tmp_path / "cv/fold_1/best/README.md").read_text()
    assert json.loads((tmp_path / "cv/crossval.json").read_text())["folds"][0]["accepted"] == fold["accepted"]
    # so do traces of the held-out recordings
    held_out = ("evaluate", tmp_path / "cv/fold_1/held_out", "--data", data, "--fold", "1", "--draws", "20")
    assert run_json(*held_out)["accepted"] == fold["accepted"]
    assert "accepted: fold 1: the encoder of 'visual'" in warnings(capsys, *held_out)
    # and whoever scores says so
    told = warnings(capsys, "evaluate", tmp_path / "official/best", *where, "--draws", "20")
    assert "was chosen by its scores on 2 of these 2 recordings: scores are too high" in told
    assert "the encoder of 'visual' was chosen by its scores on 2 of these 2 recordings: scores are too high" in told


def test_which_checkpoint_is_scored(
    data: Path, tmp_path: Path, run_json: Run, refused: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--data", data, "--store", data / "a", *STREAM, *TINY, "--draws", "20")
    for choose, told in (("inner", "the best on 1 training recording kept apart"), ("last", "the last one")):
        crossval = ("crossval", "gru", *where, "--choose", choose, "--folds", "1", "--out", tmp_path / choose)
        assert cli.main([str(a) for a in crossval]) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert (rows[0][2], rows[1][2]) == ("checkpoint", told)
    official = ("crossval", "mamba-va", *where, "--choose", "scored", "--out", tmp_path / "scored", "--folds", "0")
    assert "fold 1: only the official split, under the authors' recipe" in refused(*official, "1")
    assert not (tmp_path / "scored").exists()  # said before anything is trained
    assert "under the authors' recipe" in refused(*official, "--recipe", "paper")
    assert run_json(*official)["folds"][0]["chosen"] == "the best on the scored recordings"
    card = (tmp_path / "scored/fold_0/best/README.md").read_text()
    assert "scored once" not in card
    assert "validation set of the official split. The checkpoint is that of step" in card
    assert run_json("evaluate", tmp_path / "scored/fold_0/held_out", "--data", data, "--draws", "20")["seen"] == [
        "fold 0: the checkpoint was chosen by its scores on these recordings: scores are too high"
    ]

"""`crossval --finetune`: the encoder of a fold is tuned, its features extracted and its model trained without what is
held out; stopped in any of the three, it goes on there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import made_faces as made
from affectrace import cli
from affectrace.datasets.folds import fold_sets
from affectrace.datasets.manifest import Manifest
from affectrace.features.store import FeatureStore
from affectrace.finetune import folds
from affectrace.models import checkpoint
from affectrace.train import crossval
from command_lines import command as command_line

TUNING = "--tuning.batch-size 16 --tuning.lr .002 --tuning.frozen-blocks 1 --tuning.accelerator cpu --tuning.epochs 1"
TRAINING = "--epochs 2 --batch-size 4 --window.size 12 --window.stride 12 --lr .01 --warmup-epochs 0 --accelerator cpu"
OPTIONS = f"{TUNING} {TRAINING} --preset tiny --extraction.fps 25 --draws 20".split()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    torch.set_num_threads(1)
    manifest = made.made_set(tmp_path_factory.mktemp("faces"), n=24, train=5, validation=1)
    manifest.save(manifest.root / "manifest.json")
    return manifest


def command(faces: Manifest, vit: Path, out: Path, *more: object) -> list[str]:
    where = ["--data", faces.root, "--out", out]
    return command_line("crossval", "gru", "--finetune", f"mae-vit-l={vit}", *where, *OPTIONS, *more)


def test_every_step_of_a_fold_leaves_out_what_it_holds_out(
    faces: Manifest, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(faces, vit, tmp_path, "--folds", 1, 2, "--json", "--quiet")) == 0
    found = json.loads(capsys.readouterr().out)
    weights = []
    for result in found["folds"]:
        here = tmp_path / f"fold_{result['fold']}"
        training, held_out = ([r.id for r in part] for part in fold_sets(faces, result["fold"]))
        tuned = json.loads((here / "encoder" / "run.json").read_text())["recordings"]
        assert sorted(tuned["training"] + tuned["validation"]) == sorted(training)
        store = FeatureStore(here / "features")
        made_by = [store.get("mae-vit-l", name).extractor for name in (*training, *held_out)]
        assert {e.weights_sha256 for e in made_by} == {made_by[0].weights_sha256}
        assert made_by[0].tuned_on is not None
        assert list(made_by[0].tuned_on["training"]) == sorted(tuned["training"])
        kept = checkpoint.load(Path(result["checkpoint"])).extra
        assert sorted(kept["recordings"]["training"]) == sorted(tuned["training"])
        assert sorted(kept["recordings"]["validation"]) == sorted(tuned["validation"])
        assert sorted(kept["held_out"]) == sorted(held_out)
        assert result["accepted"] == []
        card = (Path(result["checkpoint"]) / "README.md").read_text()
        assert f"on {len(tuned['training'])} recordings of faces" in card
        weights.append(made_by[0].weights_sha256)
    assert len(set(weights)) == len(weights)  # a fold, an encoder
    # a checkpoint of a fold reads the features of its fold, and gives the score of the table
    args = ["evaluate", str(tmp_path / "fold_2" / "best"), "--data", str(faces.root), "--fold", "2", "--draws", "20"]
    assert cli.main([*args, "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)["pooled"]["mean_ccc"]
    assert again == pytest.approx(found["folds"][1]["scores"]["mean_ccc"], abs=1e-6)


def test_stopped_in_any_step_it_goes_on_there(
    faces: Manifest, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: str, *more: object, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(command(faces, vit, tmp_path / out, "--folds", 1, "--quiet", "--json", *more)) == code
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    steps: list[str] = []

    def stopping(name: str, step: Any) -> Any:
        """The step ends as Ctrl-C would end it, after its work was begun."""

        def stopped(*args: Any, **kwargs: Any) -> Any:
            seen = 0

            def watch(event: Any) -> None:
                nonlocal seen
                seen += event.stage in ("fine-tuning", "recordings", "training")
                if seen == 3:
                    raise KeyboardInterrupt

            steps.append(name)
            return step(*args, **{**kwargs, "progress": watch})

        return stopped

    places = [(folds, "finetune"), (folds, "extract"), (crossval, "train")]
    for module, name in places:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping(name, getattr(module, name)))
            run("stopped", code=130)
    assert steps == ["finetune", "extract", "train"]  # what was finished was not done again
    again, once = json.loads(run("stopped")), json.loads(run("whole"))
    assert again["folds"][0]["scores"] == once["folds"][0]["scores"]
    for log in ("encoder/log.jsonl", "log.jsonl"):
        a, b = ((tmp_path / out / "fold_1" / log).read_bytes() for out in ("stopped", "whole"))
        assert a == b
    for module, name in places:  # finished: nothing is tuned, extracted or trained again
        monkeypatch.setattr(module, name, None)
    assert json.loads(run("stopped")) == again
    # where and how fast is no other study; another encoder setting is
    faster = json.loads(run("stopped", "--extraction.threads", 2, "--tuning.threads", 1))
    assert faster["folds"] == again["folds"]
    told = run("stopped", "--tuning.lr", 0.1, code=2)
    assert "the encoder was tuned with other settings (tuning.lr: was 0.002, is 0.1)" in told


def test_mistakes_cost_one_line_before_anything_is_tuned(
    faces: Manifest, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (("--finetune", "fer"), "'fer' cannot be tuned"),
        (("--finetune", "mae-vit-x"), "unknown encoder 'mae-vit-x'; did you mean"),
        (("--tuning.objective", "expression"), "crossval tunes on valence and arousal"),
        (("--devices", "2"), "fine-tuning runs on one process"),
        (("--features", "visual=swin-b"), "two features for the stream 'visual'"),
        (("--folds", "7"), "no fold 7"),
        (("--features", "audio=hubert-base"), "'r"),
        (("--set", "widht=3"), "gru has no field widht"),
        (("--choose", "last", "--patience", "3"), "patience needs validation recordings"),
    ):
        assert cli.main(command(faces, vit, tmp_path / "out", "--folds", 1, *more, "--quiet")) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[0]
        assert len(lines) == 1
        assert not (tmp_path / "out").exists()

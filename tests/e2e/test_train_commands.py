"""From stored features through train, evaluate, compare to submit, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_faces
from affectrace import cli
from affectrace.config import locked_folder
from affectrace.datasets.manifest import Manifest
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from command_lines import command as command_line
from made_encoders import folder_of

STEPS = "--epochs 3 --batch-size 3 --window.size 40 --window.stride 30 --lr 0.01 --warmup-epochs 0.5"
MORE = "--validations-per-epoch 1 --accelerator cpu --preset tiny --features enc"
SMALL = f"{STEPS} {MORE}".split()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings with labels and one stream of features."""
    root = tmp_path_factory.mktemp("data")
    store, recordings = FeatureStore(root / "features"), []
    mix = np.random.default_rng(0).normal(0, 1, (2, 12))
    for i, split in enumerate(["train"] * 3 + ["validation"] * 2 + ["test"]):
        rng, n, name = np.random.default_rng(i), 80, f"r{i}"
        clock = Timeline.regular(n, 25)
        y = 0.7 * np.sin(np.arange(n)[:, None] / 12 + rng.uniform(0, 6, 2))
        x = (y @ mix + rng.normal(0, 0.3, (n, 12))).astype(np.float32)
        store.put(Features("visual", clock, x, np.ones(n, bool), ExtractorId("enc")), name)
        (root / f"{name}.mp4").touch()
        labels = None
        if split != "test":
            truth = Trace(name, clock, y[:, 0], y[:, 1], np.ones(n, bool), np.full(n, ""), "labels")
            labels = truth.save(root / "labels" / f"{name}.csv")
        columns = {"site": "ab"[i % 2]}
        recordings.append(Recording(name, video=root / f"{name}.mp4", labels=labels, split=split, columns=columns))
    Manifest("made", root, tuple(recordings)).save(root / "manifest.json")
    (root / "CVPR_8th_ABAW_VA_test_set_sample.txt").write_text(
        "image_location,valence,arousal\n" + "".join(f"r5/{i:05d}.jpg,0,0\n" for i in range(1, 83))
    )
    return root


def said(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    capsys.readouterr()
    code = cli.main(command_line(*args, "--json", "--quiet"))
    found = capsys.readouterr()
    assert code == 0, found.err
    result: dict[str, Any] = json.loads(found.out)
    return result


def test_train_evaluate_compare_submit(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", tree, "--store", tree / "features"]
    for name in ("gru", "frame-regressor"):
        done = said(capsys, "train", name, *data, "--out", tmp_path / name, *SMALL)
        assert done["best"] == str(tmp_path / name / "best")
    kept = json.loads((tmp_path / "gru" / "best" / "config.json").read_text())["extra"]
    assert kept["features"] == {"visual": "enc"}
    found = said(
        capsys, "evaluate", tmp_path / "gru" / "best", *data, "--by", "site", "--smoothing-curve", "--draws", 50
    )
    assert found["pooled"]["mean_ccc"] == pytest.approx(kept["validation"]["mean_ccc"], abs=1e-5)
    assert [g["group"] for g in found["groups"]] == ["a", "b"]
    beside = said(
        capsys, "compare", f"a={tmp_path}/gru/best", f"b={tmp_path}/frame-regressor/best", *data, "--draws", 50
    )
    assert {m["model"] for m in beside["models"]} == {"a", "b"}
    out = tmp_path / "predictions.txt"
    sample = ["--sample", tree / "CVPR_8th_ABAW_VA_test_set_sample.txt"]
    assert said(capsys, "submit", tmp_path / "gru" / "best", *data, *sample, "--out", out)["problems"] == []
    assert len(out.read_text().splitlines()) == 83
    out.write_text(out.read_text().replace("r5/00001.jpg,", "r5/00001.jpg,9"))
    assert cli.main(["submit", "--check", str(out), *map(str, sample)]) == 1
    assert "kinds of problems" in capsys.readouterr().err


def test_labelled_utterances_are_learned_from_their_own_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label row an utterance; the sound is there for 4 of 14 in each recording, and says nothing."""
    tables, n = tmp_path / "tables", 14
    for k in range(6):
        rng = np.random.default_rng(k)
        start, y = np.cumsum(rng.uniform(2, 6, n)).round(2), rng.uniform(-1, 1, (n, 2)).round(3)
        for kind, columns, rows in (("face", y @ [[1, -0.5], [0.5, 1]], n), ("labels", y, n), ("sound", -y * 0, 4)):
            (tables / kind).mkdir(parents=True, exist_ok=True)
            names = "valence,arousal" if kind == "labels" else "f1,f2"
            lines = [f"{t},{round(t + 1.5, 2)},{a},{b}" for t, (a, b) in zip(start[:rows], columns[:rows], strict=True)]
            (tables / kind / f"u{k}.csv").write_text("\n".join([f"start,end,{names}", *lines, ""]))
    source = {"time": "start", "end": "end"}
    features = [{"modality": m, "path": f"{m}/{{id}}.csv", **source} for m in ("face", "sound")]
    how = {"name": "said", "features": features, "labels": {"path": "labels/{id}.csv", **source}}
    (tables / "said.json").write_text(json.dumps(how))
    data = tmp_path / "data"
    assert cli.main(["import", str(tables / "said.json"), "--out", str(data), "--folds", "3"]) == 0
    options = ["--data", str(data), "--store", str(data / "features"), *SMALL[:-2], "--recipe", "none"]
    capsys.readouterr()
    argv = [*options, "--features", "said-face", "--fold", "1", "--epochs", "30", "--lr", "0.04"]
    assert cli.main(command_line("train", "frame-regressor", *argv, "--out", tmp_path / "face")) == 0
    told = capsys.readouterr().err
    assert "\nlabelled rows with features: face 84 of 84\n" in "\n" + told
    assert "warning" not in told
    kept = json.loads((tmp_path / "face" / "best" / "config.json").read_text())["extra"]
    assert kept["validation"]["mean_ccc"] > 0.8
    assert kept["labelled_rows"] == {"face": [84, 84]}
    argv = [*options, "--features", "said-sound", "--folds", "1", "--epochs", "1", "--out", str(tmp_path / "sound")]
    cli.main(command_line("crossval", "gru", *argv))
    told = capsys.readouterr().err
    assert "fold 1: labelled rows with features: sound 16 of 56\n" in told
    assert "warning: fold 1: sound covers 16 of 56 labelled rows: check its time" in told


def test_the_written_options_repeat_and_resume_a_run(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", tree, "--store", tree / "features", "--out", tmp_path / "one"]
    said(capsys, "train", "frame-regressor", *where, *SMALL)
    said(capsys, "train", "--config", tmp_path / "one" / "options.json", "--out", tmp_path / "two")
    assert (tmp_path / "one" / "log.jsonl").read_bytes() == (tmp_path / "two" / "log.jsonl").read_bytes()
    kept = (tmp_path / "one" / "options.json").read_bytes()
    said(capsys, "train", "--config", tmp_path / "one" / "options.json", "--resume", "--quiet")
    assert cli.main(command_line("train", "gru", *where, *SMALL)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main(command_line("train", "gru", *where, *SMALL, "--resume")) == 2
    assert "had other settings" in capsys.readouterr().err
    assert (tmp_path / "one" / "options.json").read_bytes() == kept


def test_of_two_processes_with_one_folder_the_second_ends_at_once(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", tree, "--store", tree / "features", "--out", tmp_path / "run", *SMALL]
    for command in (["train", "gru"], ["crossval", "gru", "--folds", 1]):
        with locked_folder(tmp_path / "run", "training"):
            assert cli.main(command_line(*command, *where, "--quiet")) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith(f"affectrace: {tmp_path / 'run'}: another training is writing here;")
        assert "\n" not in line
        assert not (tmp_path / "run").exists()


def test_the_challenges_baseline_from_pictures_to_a_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`extract resnet-50`, then one linear layer by its recipe; the encoder is a small one with random weights."""
    faces = made_faces.made_set(tmp_path / "data", n=24, train=3, validation=1)
    faces.save(faces.root / "manifest.json")
    encoder = folder_of("resnet-50", tmp_path / "resnet")
    store = ["--store", tmp_path / "features"]
    said(capsys, "extract", faces.root, "--features", f"resnet-50={encoder}", "--fps", 25, "--out", store[1])
    done = said(
        capsys,
        *("train", "frame-regressor", "--recipe", "challenge", "--data", faces.root, *store),
        *("--features", "resnet-50", "--accelerator", "cpu", "--epochs", 2, "--out", tmp_path / "run"),
    )
    kept = json.loads((Path(done["best"]) / "config.json").read_text())
    assert kept["preset"] == "paper"
    assert kept["config"]["hidden"] == []
    assert "Kollias 2022" in (Path(done["best"]) / "README.md").read_text()
    found = said(capsys, "evaluate", done["best"], "--data", faces.root, *store, "--draws", 20)
    assert np.isfinite(found["pooled"]["mean_ccc"])


def test_mistakes_cost_one_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (["gru"], "no features named"),
        (["gruu", "--features", "enc"], "did you mean 'gru'"),
        (["gru", "--features", "enc", "--set", "widht=3"], "gru has no field widht"),
        (["gru", "--features", "enc", "--set", "width"], "is not FIELD=VALUE"),
        (["gru", "--features", "enc", "--set", "width=" + "[" * 100_000], "width"),
        (["gru", "--features", "enc", "--fold", "9"], "no fold 9, there are folds 1 to 5"),
        (["gru", "--features", "enc", "--recipe", "paper-38"], "unknown recipe of gru 'paper-38'"),
        (["maven", "--features", "enc", "--recipe", "paper38"], "did you mean 'paper-38'"),
        (["gru", "--features", "enc", "--beit", "x"], "gru has no BEiT blocks"),
        (["gru", "--features", "enc", "--schedule", "sometimes"], "--schedule"),
        (["gru", "--features", "other"], "has no other features"),
    ):
        given = ["train", *args, "--data", str(tree), "--store", str(tree / "features"), "--out", str(tmp_path / "x")]
        assert cli.main([*given, "--quiet"]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[0]
        assert len(lines) == 1
        assert not (tmp_path / "x").exists()


def test_labels_that_never_change_leave_no_best(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, recordings = FeatureStore(tmp_path / "features"), [r for r in Manifest.load(tree) if r.split != "test"]
    for k, recording in enumerate(recordings):
        truth = Trace.load(recording.labels or Path())
        flat = replace(truth, valence=np.zeros(80), arousal=np.zeros(80)).save(tmp_path / f"{recording.id}.csv")
        recordings[k] = replace(recording, labels=flat)
        x = np.zeros((80, 12), np.float32)
        store.put(Features("visual", truth.timeline, x, np.ones(80, bool), ExtractorId("enc")), recording.id)
    Manifest("flat", tmp_path, tuple(recordings)).save(tmp_path / "manifest.json")
    where = ["--data", tmp_path, "--store", tmp_path / "features", "--out", tmp_path / "run", *SMALL]
    assert cli.main(command_line("train", "frame-regressor", *where, "--epochs", 1, "--quiet", "--json")) == 1
    shown = capsys.readouterr()
    assert "no validation had a defined CCC" in shown.err
    assert json.loads(shown.out)["best"] is None


def test_settings_follow_the_recipe_of_the_fold_the_file_and_the_command_line(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "some.json", tmp_path / "run"
    file.write_text(json.dumps({"lr": 0.25, "eps": 1e-3, "window": {"size": 50, "stride": 50}}))
    where = ["--data", tree, "--store", tree / "features", "--features", "enc", "--out", out, "--epochs", 1]
    given = ["--config", file, "--eps", 1e-2, "--fold", 2, "--preset", "tiny", "--accelerator", "cpu"]
    said(capsys, "train", "mamba-va", *where, *given)
    found = json.loads((out / "run.json").read_text())
    training, window = found["training"], found["training"]["window"]
    assert (training["lr"], training["eps"], training["weight_decay"]) == (0.25, 1e-2, 1e-3)  # file, line, fold
    assert window["size"] == 50
    assert found["model_config"]["dropout"] == 0.2
    assert found["recipe"] == "the authors' code, fold 2"


# ---- folds


def test_crossval_shows_its_table(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", tree, "--store", tree / "features", "--out", tmp_path / "cv", *SMALL]
    args = command_line("crossval", "mamba-va", *where, "--folds", 0, 2, 5, "--draws", 30, "--epochs", 1)
    assert cli.main([*args, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["fold"] for r in found["folds"]] == [0, 2, 5]
    assert found == {k: v for k, v in json.loads((tmp_path / "cv" / "crossval.json").read_text()).items() if k in found}
    for fold, dropout, lr in ((0, 0.3, 0.01), (2, 0.2, 0.01)):  # dropout by the fold, lr as given
        kept = json.loads((tmp_path / "cv" / f"fold_{fold}" / "best" / "config.json").read_text())
        assert kept["config"]["dropout"] == dropout
        assert kept["extra"]["training"]["lr"] == lr
        assert kept["extra"]["training"]["weight_decay"] == (1e-2 if fold == 0 else 1e-3)
    assert cli.main(args) == 0  # finished: only the table
    shown = capsys.readouterr()
    rows = [line.split("\t") for line in shown.out.splitlines()]
    assert [r[0] for r in rows] == [
        "fold",
        "0",
        "2",
        "5",
        "mean of 2 folds (SD)",
        "all held out, pooled",
    ]
    assert {len(r) for r in rows} == {9}  # these data are not Aff-Wild2: no figures of the paper's
    assert (rows[2][1], rows[2][4]) == ("1", "no interval")
    assert "imprecise with few recordings" in shown.err
    assert "fold 2 (1)" in shown.err
    assert "training" not in shown.err
    assert found["folds"][1]["intervals"]["mean_ccc"] == [None, None]
    of = {c["fold"]: c for c in found["folds"]}
    assert rows[1][2] == of[0]["chosen"] == "the best on 1 training recording kept apart"
    assert float(rows[1][3]) == pytest.approx(of[0]["scores"]["ccc_valence"], abs=6e-4)


def as_aff_wild2(tree: Path, out: Path) -> Path:
    """The same recordings with labels as Aff-Wild2 has them, in a set of its name."""
    recordings = []
    out.mkdir()
    for recording in Manifest.load(tree):
        if recording.labels is not None:
            rows = "".join(f"{v},{a}\n" for v, a in Trace.load(recording.labels).values)
            (out / f"{recording.id}.txt").write_text("valence,arousal\n" + rows)
            recording = replace(recording, labels=out / f"{recording.id}.txt")
        recordings.append(recording)
    counts = dict.fromkeys((r.id for r in recordings), 80)
    Manifest("aff-wild2", out, tuple(recordings), "aff-wild2", counts).save(out / "manifest.json")
    return out


def test_the_papers_figures_stand_beside_mamba_va_on_aff_wild2_alone(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", as_aff_wild2(tree, tmp_path / "set"), "--store", tree / "features"]
    for model, of_the_paper in (("mamba-va", ["0.545", "0.385", "0.465"]), ("gru", [])):
        run = ["crossval", model, *where, "--out", tmp_path / model, *SMALL, "--folds", 0, "--draws", 20]
        assert cli.main(command_line(*run, "--epochs", 1)) == 0
        shown = capsys.readouterr()
        head, row = (line.split("\t") for line in shown.out.splitlines())
        assert row[9:] == of_the_paper
        assert ("Mamba-VA paper: valence" in head) == bool(of_the_paper)
        assert ("arXiv:2503.10104, Table 1" in shown.err) == bool(of_the_paper)
    models = [f"a={tmp_path}/mamba-va/fold_0/best", f"b={tmp_path}/gru/fold_0/best"]
    for more, expected in (([], ["Mamba-VA fold 0", "baseline (ResNet-50)"]), (["--no-published"], [])):
        assert cli.main(command_line("compare", *models, *where, "--draws", 20, *more)) == 0
        shown = capsys.readouterr()
        names = [line.split("\t")[0] for line in shown.out.splitlines()]
        assert names[3 : 3 + len(expected)] == expected
        assert names[3 + len(expected)] == "difference of mean CCC"
        assert "note: only 2 recordings: intervals and p-values over so few are rough" in shown.err
        assert float(shown.out.splitlines()[-1].split("\t")[-1]) >= 0.095  # 2 / (20 + 1) at least
    assert cli.main(command_line("compare", *models, "--data", tree, "--store", tree / "features")) == 0
    assert "ResNet-50" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1200)  # processes of their own, each loading torch
def test_a_killed_crossval_is_resumed_inside_its_fold(tree: Path, tmp_path: Path) -> None:
    where = ["--data", tree, "--store", tree / "features", "--draws", 20, "--folds", 1, 2, *SMALL, "--epochs", 20]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "affectrace", *command_line("crossval", "gru", *where, "--quiet", "--out", out)]

    victim = subprocess.Popen(command(tmp_path / "killed"), env=environment)
    log, deadline = tmp_path / "killed" / "fold_1" / "log.jsonl", time.monotonic() + 300
    while not log.exists() or log.read_text().count("validation") < 2:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    assert not (tmp_path / "killed" / "fold_1" / "scores.json").exists()
    for name in ("killed", "whole"):
        subprocess.run(command(tmp_path / name), env=environment, check=True, timeout=400)
    tables = [json.loads((tmp_path / name / "crossval.json").read_text()) for name in ("killed", "whole")]
    for part in ("mean", "pooled"):
        assert tables[0][part] == tables[1][part]
    logs = [(tmp_path / name / "fold_1" / "log.jsonl").read_bytes() for name in ("killed", "whole")]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # processes of their own, each loading torch
def test_crossval_on_two_devices(tree: Path, tmp_path: Path) -> None:
    where = ["--data", tree, "--store", tree / "features", *SMALL, "--set", "dropout=0", "--json", "--epochs", 1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    tables = []
    for n in (1, 2):
        line = command_line("crossval", "gru", *where, "--folds", 1, 2, "--devices", n, "--draws", 20)
        ran = subprocess.run(
            [sys.executable, "-m", "affectrace", *line, "--out", str(tmp_path / str(n))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        tables.append(json.loads(ran.stdout))
    for a, b in zip(tables[0]["folds"], tables[1]["folds"], strict=True):
        assert a["scores"]["mean_ccc"] == pytest.approx(b["scores"]["mean_ccc"], abs=1e-4)

"""Several checkpoints as one, in windows, smoothed, and handed in, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_train_commands import SMALL, said, tree  # noqa: F401 - the fixture

from affectrace import cli
from affectrace.datasets import open_dataset
from affectrace.evaluate import score
from affectrace.features.store import FeatureStore
from affectrace.inference.run import TrainedModel, predict_sequence
from affectrace.sequences import open_sequences
from affectrace.sequences.windows import WindowScheme


@pytest.fixture(scope="module")
def models(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    out = tmp_path_factory.mktemp("models")
    where = ["--data", tree, "--store", tree / "features", *SMALL]
    for name, extra in (("gru", ["--fold", 1]), ("tcn-transformer", [])):
        args = ["train", name, *where, "--out", out / name, *extra, "--quiet"]
        assert cli.main([str(a) for a in args]) == 0
    return {name: out / name / "best" for name in ("gru", "tcn-transformer")}


def data(tree: Path) -> list[Any]:  # noqa: F811
    return ["--data", tree, "--store", tree / "features", "--draws", 20]


def test_an_ensemble_is_evaluated_compared_and_handed_in(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gru, tcn = models["gru"], models["tcn-transformer"]
    both = said(capsys, "evaluate", gru, tcn, "--ensemble", *data(tree))["pooled"]
    alone = [said(capsys, "evaluate", m, *data(tree))["pooled"] for m in (gru, tcn)]
    assert both["rmse_valence"] < max(a["rmse_valence"] for a in alone)
    one = said(capsys, "evaluate", gru, tcn, "--ensemble", "--weights", 0, 1, *data(tree))["pooled"]
    assert one["mean_ccc"] == pytest.approx(alone[1]["mean_ccc"], abs=1e-12)
    assert one["mean_ccc"] != pytest.approx(both["mean_ccc"], abs=1e-6)
    beside = said(capsys, "compare", f"both={gru},{tcn}", f"gru={gru}", *data(tree))
    scores = {m["model"]: m["scores"]["mean_ccc"] for m in beside["models"]}
    assert scores == {
        "both": pytest.approx(both["mean_ccc"], abs=1e-12),
        "gru": pytest.approx(alone[0]["mean_ccc"], abs=1e-12),
    }
    sample = ["--sample", tree / "CVPR_8th_ABAW_VA_test_set_sample.txt", "--data", tree, "--store", tree / "features"]
    files = [tmp_path / "both.txt", tmp_path / "gru.txt"]
    assert said(capsys, "submit", gru, tcn, "--ensemble", *sample, "--out", files[0])["problems"] == []
    said(capsys, "submit", gru, *sample, "--out", files[1])
    assert files[0].read_text() != files[1].read_text()


def test_what_a_member_was_trained_on_is_said(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["evaluate", models["gru"], *data(tree)]  # fold 1 trained on recordings of the official validation set
    assert cli.main([str(a) for a in args]) == 0
    assert "was trained on 2 of these 2 recordings: scores are too high" in capsys.readouterr().err
    args = ["evaluate", models["gru"], *data(tree), "--fold", 1]
    assert cli.main([str(a) for a in args]) == 0
    error = capsys.readouterr().err
    assert "was trained on" not in error
    assert "was chosen by its scores on 1 of these 1 recordings: scores are too high" in error


def test_windows_instead_of_carried_state(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As predict does it: the scores are those of the model's traces in windows; one long window carries as well."""
    gru = models["gru"]
    carried, long, short = (
        said(capsys, "evaluate", gru, *windows, *data(tree))["pooled"]["mean_ccc"]
        for windows in ([], ["--windows", "1000:1000"], ["--windows", "20:10"])
    )
    assert long == pytest.approx(carried, abs=1e-6)
    manifest, _ = open_dataset(tree)
    model, store = TrainedModel.load(gru), FeatureStore(tree / "features")
    sequences = list(open_sequences(manifest.of_split("validation"), manifest, store, model.features, model.sequences))
    traces = [
        predict_sequence(model.model, s, statistics=model.statistics, scheme=WindowScheme(20, 10)) for s in sequences
    ]
    assert short == pytest.approx(score(traces, [s.labels for s in sequences if s.labels]).mean_ccc, abs=1e-6)
    assert abs(short - carried) > 1e-4
    both = said(capsys, "evaluate", gru, models["tcn-transformer"], "--ensemble", "--windows", "20:10", *data(tree))
    assert both["pooled"]["n"] > 0


def test_the_features_a_checkpoint_reads_can_be_named(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (stream, extractor), *_ = TrainedModel.load(models["gru"]).features.items()
    base = ["evaluate", models["gru"], *data(tree)]
    same = said(capsys, *base, "--features", f"{stream}={extractor}")
    assert same["pooled"] == said(capsys, *base)["pooled"]
    for features, message in (
        (f"{stream}=other", "other"),
        ("nose=x", "unknown stream 'nose'"),
        ("x", "STREAM=EXTRACTOR"),
    ):
        assert cli.main([str(a) for a in (*base, "--features", features)]) == 2
        assert message in capsys.readouterr().err


def test_the_sample_is_the_one_that_the_data_set_holds(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    layout = tree / "VA_Estimation_Challenge" / "Train_Set"
    layout.mkdir(parents=True)
    (layout / "a.txt").write_text("valence,arousal\n0,0\n")
    base = ["submit", models["gru"], "--data", tree, "--store", tree / "features"]
    said(capsys, *base)
    asked = (tree / "CVPR_8th_ABAW_VA_test_set_sample.txt").read_text().splitlines()
    assert [row.split(",")[0] for row in (tmp_path / "predictions.txt").read_text().splitlines()[1:]] == [
        row.split(",")[0] for row in asked[1:]
    ]
    (tmp_path / "huge.txt").write_text("\n".join([*asked, "t/99999999999999999999.jpg,-5,-5"]))
    assert said(capsys, *base, "--sample", tmp_path / "huge.txt")["problems"] == []  # names no image: left out


def test_smoothing_chosen_on_validation_is_kept_and_taken(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    gru = models["gru"]
    assert cli.main([str(a) for a in ("evaluate", gru, "--smooth", "auto", *data(tree), "--quiet")]) == 2
    assert "no smoothing was kept with it; choose one on validation data" in capsys.readouterr().err
    found = said(capsys, "evaluate", gru, "--smoothing-curve", "--keep-smoothing", *data(tree))
    best = max(found["smoothing"], key=lambda p: p["mean_ccc"])
    kept = json.loads((gru / "smoothing.json").read_text())
    assert (kept["method"], kept["window_s"], kept["mean_ccc"]) == (best["method"], best["window_s"], best["mean_ccc"])
    again = said(capsys, "evaluate", gru, "--smooth", "auto", *data(tree))
    assert again["pooled"]["mean_ccc"] == pytest.approx(best["mean_ccc"], abs=1e-9)
    other = models["tcn-transformer"]
    (other / "smoothing.json").write_text('{"method": "mean", "window_s": 0.125}')
    both = ["evaluate", gru, other, "--ensemble", "--smooth", "auto", *data(tree), "--quiet"]
    assert cli.main([str(a) for a in both]) == 2
    assert "kept different smoothing" in capsys.readouterr().err
    (other / "smoothing.json").write_text('{"method": "mode"}')
    assert cli.main([str(a) for a in both]) == 2
    assert "smoothing.json: is no choice of smoothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("which", "args", "message"),
    [
        (("gru",), ["--keep-smoothing"], "keeps the best of --smoothing-curve beside one checkpoint"),
        (("gru", "tcn-transformer"), [], "2 checkpoints are given; average them with --ensemble"),
        (("gru", "tcn-transformer"), ["--ensemble", "--weights", "1"], "1 weights for 2 models"),
        (("gru",), ["--windows", "20"], "'20' is not SIZE:STRIDE"),
        (("gru",), ["--windows", "20:30"], "leave out frames"),
        (("tcn-transformer",), ["--windows", "20:10"], "is not causal"),
    ],
)
def test_mistakes(
    tree: Path,  # noqa: F811
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    which: tuple[str, ...],
    args: list[str],
    message: str,
) -> None:
    given = ["evaluate", *(models[w] for w in which), *args, *data(tree), "--quiet"]
    assert cli.main([str(a) for a in given]) == 2
    assert message in capsys.readouterr().err

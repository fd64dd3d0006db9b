"""Several checkpoints as one, in windows, smoothed, and handed in, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_train_commands import SMALL, tree  # noqa: F401 - the fixture

from affectrace import cli
from affectrace.datasets import open_dataset
from affectrace.evaluate import score
from affectrace.features.store import FeatureStore
from affectrace.inference.run import TrainedModel, predict_sequence
from affectrace.sequences import open_sequences
from affectrace.sequences.config import WindowScheme

Run = Callable[..., Any]


class Models(NamedTuple):
    """Two checkpoints (gru: of fold 1) and the data set they were trained on."""

    gru: Path
    tcn: Path
    tree: Path

    @property
    def where(self) -> list[Any]:
        return ["--data", self.tree, "--store", self.tree / "features"]

    @property
    def data(self) -> list[Any]:
        return [*self.where, "--draws", 20]


@pytest.fixture(scope="module")
def models(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:  # noqa: F811
    out = tmp_path_factory.mktemp("models")
    made = Models(out / "gru" / "best", out / "tcn" / "best", tree)
    for name, folder, extra in (("gru", made.gru, ["--fold", 1]), ("tcn-transformer", made.tcn, [])):
        args = ["train", name, *made.where, *SMALL, "--out", folder.parent, *extra, "--quiet"]
        assert cli.main([str(a) for a in args]) == 0
    return made


def test_an_ensemble_is_evaluated_compared_and_handed_in(models: Models, tmp_path: Path, run_json: Run) -> None:
    gru, tcn = models.gru, models.tcn
    both = run_json("evaluate", gru, tcn, "--ensemble", *models.data)["pooled"]
    alone = [run_json("evaluate", m, *models.data)["pooled"] for m in (gru, tcn)]
    assert both["rmse_valence"] < max(a["rmse_valence"] for a in alone)
    one = run_json("evaluate", gru, tcn, "--ensemble", "--weights", 0, 1, *models.data)["pooled"]
    assert one["mean_ccc"] == pytest.approx(alone[1]["mean_ccc"], abs=1e-12)
    assert one["mean_ccc"] != pytest.approx(both["mean_ccc"], abs=1e-6)
    beside = run_json("compare", f"both={gru},{tcn}", f"gru={gru}", *models.data)
    scores = {m["model"]: m["scores"]["mean_ccc"] for m in beside["models"]}
    assert scores == {
        "both": pytest.approx(both["mean_ccc"], abs=1e-12),
        "gru": pytest.approx(alone[0]["mean_ccc"], abs=1e-12),
    }
    sample = [*models.where, "--sample", models.tree / "CVPR_8th_ABAW_VA_test_set_sample.txt"]
    files = [tmp_path / "both.txt", tmp_path / "gru.txt"]
    assert run_json("submit", gru, tcn, "--ensemble", *sample, "--out", files[0])["problems"] == []
    run_json("submit", gru, *sample, "--out", files[1])
    assert files[0].read_text() != files[1].read_text()


def test_what_a_member_was_trained_on_is_said(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    def warnings(*more: object) -> str:
        assert cli.main([str(a) for a in ("evaluate", models.gru, *models.data, *more)]) == 0
        return capsys.readouterr().err

    # fold 1 trained on recordings of the official validation set
    assert "was trained on 2 of these 2 recordings: scores are too high" in warnings()
    error = warnings("--fold", 1)
    assert "was trained on" not in error
    assert "was chosen by its scores on 1 of these 1 recordings: scores are too high" in error


def test_windows_instead_of_carried_state(models: Models, run_json: Run) -> None:
    """As predict does it: the scores are those of the model's traces in windows; one long window carries as well."""
    gru = models.gru
    carried, long, short = (
        run_json("evaluate", gru, *windows, *models.data)["pooled"]["mean_ccc"]
        for windows in ([], ["--windows", "1000:1000"], ["--windows", "20:10"])
    )
    assert long == pytest.approx(carried, abs=1e-6)
    manifest, _ = open_dataset(models.tree)
    model, store = TrainedModel.load(gru), FeatureStore(models.tree / "features")
    sequences = list(open_sequences(manifest.of_split("validation"), manifest, store, model.features, model.sequences))
    traces = [
        predict_sequence(model.model, s, statistics=model.statistics, scheme=WindowScheme(20, 10)) for s in sequences
    ]
    assert short == pytest.approx(score(traces, [s.labels for s in sequences if s.labels]).mean_ccc, abs=1e-6)
    assert abs(short - carried) > 1e-4
    both = run_json("evaluate", gru, models.tcn, "--ensemble", "--windows", "20:10", *models.data)
    assert both["pooled"]["n"] > 0


def test_the_features_a_checkpoint_reads_can_be_named(models: Models, run_json: Run, refused: Run) -> None:
    (stream, extractor), *_ = TrainedModel.load(models.gru).features.items()
    base = ["evaluate", models.gru, *models.data]
    assert run_json(*base, "--features", f"{stream}={extractor}")["pooled"] == run_json(*base)["pooled"]
    for features, message in (
        (f"{stream}=o", "no o features"),
        ("nose=x", "unknown stream 'nose'"),
        ("x", "STREAM=EXTRACTOR"),
    ):
        assert message in refused(*base, "--features", features)


def test_the_sample_is_the_one_that_the_data_set_holds(
    models: Models, run_json: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout = models.tree / "VA_Estimation_Challenge" / "Train_Set"
    layout.mkdir(parents=True)
    (layout / "a.txt").write_text("valence,arousal\n0,0\n")
    base = ["submit", models.gru, *models.where]
    run_json(*base)
    asked = (models.tree / "CVPR_8th_ABAW_VA_test_set_sample.txt").read_text().splitlines()
    assert [row.split(",")[0] for row in (tmp_path / "predictions.txt").read_text().splitlines()[1:]] == [
        row.split(",")[0] for row in asked[1:]
    ]
    (tmp_path / "huge.txt").write_text("\n".join([*asked, "t/99999999999999999999.jpg,-5,-5"]))
    assert run_json(*base, "--sample", tmp_path / "huge.txt")["problems"] == []  # names no image: left out


def test_smoothing_chosen_on_validation_is_kept_and_taken(models: Models, run_json: Run, refused: Run) -> None:
    gru = models.gru
    kept_none = "has no stored smoothing; choose one on validation data"
    assert kept_none in refused("evaluate", gru, "--smooth", "auto", *models.data)
    found = run_json("evaluate", gru, "--smoothing-curve", "--keep-smoothing", *models.data)
    best = max(found["smoothing"], key=lambda p: p["mean_ccc"])
    kept = json.loads((gru / "smoothing.json").read_text())
    assert (kept["method"], kept["window_s"], kept["mean_ccc"]) == (best["method"], best["window_s"], best["mean_ccc"])
    again = run_json("evaluate", gru, "--smooth", "auto", *models.data)
    assert again["pooled"]["mean_ccc"] == pytest.approx(best["mean_ccc"], abs=1e-9)
    other = models.tcn
    (other / "smoothing.json").write_text('{"method": "mean", "window_s": 0.125}')
    both = ["evaluate", gru, other, "--ensemble", "--smooth", "auto", *models.data]
    assert "different stored smoothing" in refused(*both)
    (other / "smoothing.json").write_text('{"method": "mode"}')
    assert "smoothing.json: is not a stored smoothing" in refused(*both)


@pytest.mark.parametrize(
    ("which", "args", "message"),
    [
        (("gru",), ["--keep-smoothing"], "keeps the best of --smoothing-curve beside one checkpoint"),
        (("gru", "tcn"), [], "2 checkpoints are given; average them with --ensemble"),
        (("gru", "tcn"), ["--ensemble", "--weights", "1"], "1 weights for 2 models"),
        (("gru",), ["--windows", "20"], "'20' is not SIZE:STRIDE"),
        (("gru",), ["--windows", "0:0"], "'0:0' is not SIZE:STRIDE"),
        (("gru",), ["--device", "gpu0"], "unknown device 'gpu0'"),
        (("gru",), ["--device", "cuda:99"], "no device 'cuda:99' on this machine"),
        (("gru",), ["--draws", 0], "--draws"),
        (("gru",), ["--seed=-1"], "--seed"),
        (("gru",), ["--smooth", "median:1e300"], "states no window"),
        (("gru",), ["--windows", "20:30"], "frames would be skipped"),
        (("tcn",), ["--windows", "20:10"], "is not causal"),
    ],
)
def test_mistakes(models: Models, refused: Run, which: tuple[str, ...], args: list[str], message: str) -> None:
    assert message in refused("evaluate", *(getattr(models, w) for w in which), *models.data, *args)

"""A trained checkpoint on recordings: from `affectrace extract` and `train` to `affectrace predict --model`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import affectrace
import made_media as made
from affectrace.cli import main
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError, MediaError, UnknownNameError
from affectrace.evaluate.smoothing import keep_choice, smoothed
from affectrace.features.config import ExtractConfig
from affectrace.features.extract import extract
from affectrace.features.store import FeatureStore
from affectrace.inference.run import TrainedModel, predict_sequence, sized
from affectrace.models import checkpoint
from affectrace.recording import Recording
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.trace import Trace

FPS = "6"
Refuses = Callable[..., None]

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of the example, two of them without a face, with extracted face geometry and prosody; copies
    `a` and `b` with synthetic labels for training and validation."""
    root = tmp_path_factory.mktemp("trained")
    video = made.example_excerpt(root / "example.mp4", 10, 18)
    names = "mesh-geometry,prosody"
    assert main(["extract", str(video), "--features", names, "--out", str(root / "f"), "--fps", FPS, "--quiet"]) == 0
    store = FeatureStore(root / "f")
    face = store.get("mesh-geometry", "example")
    t = np.arange(len(face.timeline)) / 20
    recordings = []
    for name, split in (("a", "train"), ("b", "validation")):
        for extractor in ("mesh-geometry", "prosody"):
            store.put(store.get(extractor, "example").features(), name)
        labels = Trace(name, face.timeline, 0.5 * np.sin(t), 0.5 * np.cos(t), t > -1, np.full(len(t), ""), "labels")
        shutil.copy(video, root / f"{name}.mp4")
        path = labels.save(root / "labels" / f"{name}.csv")
        recordings.append(Recording(name, video=root / f"{name}.mp4", labels=path, split=split))
    Manifest("made", root, tuple(recordings)).save(root / "manifest.json")
    return root


def trained(data: Path, model: str, *features: str) -> Path:
    out = data / model
    if not out.exists():
        steps = ["--epochs", "1", "--window.size", "40", "--window.stride", "30", "--validations-per-epoch", "1"]
        given = ["--data", str(data), "--store", str(data / "f"), "--out", str(out), "--features", *features]
        assert main(["train", model, *given, *steps, "--preset", "tiny", "--accelerator", "cpu", "--quiet"]) == 0
    return out / "best" if (out / "best").is_dir() else out / "last"


@pytest.fixture(scope="module")
def video(data: Path) -> Path:
    return data / "example.mp4"


@pytest.fixture(scope="module")
def mamba(data: Path) -> Path:
    return trained(data, "mamba-va", "mesh-geometry")


@pytest.fixture(scope="module")
def gru(data: Path) -> Path:
    return trained(data, "gru", "mesh-geometry")


@pytest.fixture(scope="module")
def maven(data: Path) -> Path:
    """Not causal, of two streams."""
    return trained(data, "maven", "face=mesh-geometry", "voice=prosody")


@pytest.fixture
def refuses(video: Path, tmp_path: Path, refused: Callable[..., str]) -> Refuses:
    """Check that `predict VIDEO --model ARGS` fails with this one-line message before anything is written."""

    def check(message: str, *args: object) -> None:
        assert message in refused("predict", video, "--out", tmp_path / "refused", "--model", *args)
        assert not (tmp_path / "refused").exists()

    return check


def by_command(out: Path, *args: object) -> Trace:
    assert main(["predict", "--out", str(out), "--fps", FPS, "--quiet", *map(str, args)]) == 0
    return Trace.load(out / "example.csv")


def as_sequence(model: TrainedModel, data: Path) -> Sequence:
    store = FeatureStore(data / "f")
    inputs = {stream: store.get(name, "example") for stream, name in model.features.items()}
    return Sequence("example", store.get("mesh-geometry", "example").timeline, inputs, config=model.sequences)


def from_store(folder: Path, data: Path) -> Trace:
    """The slow twin: features that `extract` wrote, read back, through the model."""
    model = TrainedModel.load(folder)
    return model.predict(as_sequence(model, data))


def test_a_trained_checkpoint_predicts_a_video_as_it_predicts_its_features(
    data: Path, video: Path, mamba: Path
) -> None:
    model = affectrace.load(mamba)
    trace, expected = model.predict(video, fps=FPS), from_store(mamba, data)
    assert isinstance(trace, Trace)
    assert trace.timeline == expected.timeline
    assert trace.source == expected.source == model.source
    seen = FeatureStore(data / "f").get("mesh-geometry", "example").valid
    known = np.maximum.accumulate(seen)
    assert not seen.all()
    np.testing.assert_array_equal(trace.known, known)
    np.testing.assert_allclose(trace.values[known], expected.values[known], atol=1e-6)
    assert np.isfinite(trace.extras["face_x"]).sum() == seen.sum()
    assert trace.provenance["features"]["face"]["name"] == "mesh-geometry"
    assert "torch" in trace.provenance["versions"]
    assert any("no face in" in note for note in trace.provenance["notes"])


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "onnx"]))
from affectrace.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_export_predicts_the_video_without_torch(video: Path, gru: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    assert main(["export", str(gru), "--to", "onnx", "--out", str(file), "--frames", "16", "--quiet"]) == 0
    run = ["predict", video, "--model", file, "--fps", FPS, "--out", tmp_path / "o", "--quiet"]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, run)], check=True)
    found, expected = Trace.load(tmp_path / "o" / "example.csv"), affectrace.load(gru).predict(video, fps=FPS)
    assert isinstance(expected, Trace)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert found.reason.tolist() == expected.reason.tolist()
    assert found.source == expected.source
    assert found.provenance["model"] == expected.provenance["model"] | {"runtime": "onnxruntime"}
    assert found.provenance["notes"] == expected.provenance["notes"]


def test_by_the_command_line_with_report_overlay_and_resume(
    video: Path, mamba: Path, tmp_path: Path, run_json: Callable[..., Any], capsys: Any
) -> None:
    run = ["predict", video, "--model", mamba, "--fps", FPS, "--out", tmp_path / "o", "--report", "--overlay"]
    result = run_json(*run)["results"][0]
    trace = Trace.load(result["csv"])
    assert trace.source.startswith("mamba-va@")
    assert trace.source in Path(result["report"]).read_text()
    assert Path(result["overlay"]).stat().st_size > 10_000
    assert main([*map(str, run), "--resume"]) == 0
    assert "already done" in "".join(capsys.readouterr())
    assert run_json("summary", tmp_path / "o")["summary"][0]["share_valid"] > 0.8


def test_sound_alone_and_several_streams(data: Path, video: Path, maven: Path) -> None:
    model = affectrace.load(str(maven))
    whole = model.predict(video, fps=FPS)
    np.testing.assert_allclose(whole.values, from_store(maven, data).values, atol=1e-6)
    heard = model.predict(video, modalities=("voice",), hop_s=0.5)
    assert isinstance(heard, Trace)
    assert heard.person == "voice"
    assert len(heard) == 16
    assert heard.valid.all()
    assert not heard.extras
    assert {s.kind for s in heard.spans} == {"speech"}


@pytest.mark.parametrize("align", ["mean", "hold"])
def test_features_are_aligned_as_in_training(data: Path, video: Path, maven: Path, tmp_path: Path, align: str) -> None:
    found = checkpoint.load(maven)
    extra = {**found.extra, "sequences": {**found.extra["sequences"], "align": align}}
    shutil.copytree(maven, tmp_path / "m")
    checkpoint.save(found.model, tmp_path / "m", extra=extra)
    predicted = affectrace.load(tmp_path / "m").predict(video, fps=FPS)
    np.testing.assert_allclose(predicted.values, from_store(tmp_path / "m", data).values, atol=1e-6)
    assert np.abs(predicted.values - from_store(maven, data).values).max() > 1e-4


def of_other_weights(folder: Path, out: Path) -> Path:
    found = checkpoint.load(folder)
    checkpoint.save(found.model, out, extra={**found.extra, "extractors": {"face": "0123456789abcdef"}})
    return out


def test_other_weights_than_those_of_training_are_refused(
    data: Path, video: Path, mamba: Path, tmp_path: Path, capsys: Any
) -> None:
    other = of_other_weights(mamba, tmp_path / "m")
    told = r"'face' was made with other weights .* than by mesh-geometry"
    with pytest.raises(InputError, match=f"{told} .*face=mesh-geometry=F"):
        affectrace.load(other).predict(video, fps=FPS)
    with pytest.raises(InputError, match=told):
        affectrace.load([mamba, other]).predict(video, fps=FPS)
    several = [str(video), str(data / "a.mp4")]
    assert main(["predict", *several, "--model", str(other), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("in training than by") == 1  # told once, before the work
    assert not (tmp_path / "o").exists()


def test_recordings_and_models_that_do_not_fit(video: Path, mamba: Path, tmp_path: Path) -> None:
    model: Any = affectrace.load(mamba)
    sound = made.write_sound(tmp_path / "tone.wav", made.tone(1, 16_000), 16_000, "pcm_s16le")
    with pytest.raises(MediaError, match=r"tone: has nothing the model reads \(mesh-geometry\)"):
        model.predict(sound)
    with pytest.raises(InputError, match="add visual to --modalities"):
        model.predict(video, modalities=("voice",))
    with pytest.raises(UnknownNameError, match=r"unknown stream 'fac'; did you mean 'face'"):
        affectrace.load(mamba, features={"fac": "fer"})
    with pytest.raises(UnknownNameError, match="unknown features 'enc'"):
        affectrace.load(mamba, features={"face": "enc"}).predict(video)
    checkpoint.save(checkpoint.load(mamba).model, tmp_path / "bare")
    with pytest.raises(InputError, match=r"does not name the features it reads.*face=EXTRACTOR"):
        affectrace.load(tmp_path / "bare")


def test_a_video_without_a_face_gives_a_trace_that_is_nowhere_valid(mamba: Path, tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(np.full((90, 120, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    trace = affectrace.load(mamba).predict(Recording("grey", video=tmp_path), fps="3")
    assert isinstance(trace, Trace)
    assert trace.person == "none"
    assert not trace.valid.any()
    assert set(trace.reason) == {"no face"}
    assert "no face was found in any frame" in trace.provenance["notes"]


def test_shares_of_modalities_are_columns(
    video: Path, maven: Path, gru: Path, tmp_path: Path, refuses: Refuses
) -> None:
    plain = by_command(tmp_path, video, "--model", maven)
    assert not any(name.startswith("share_") for name in plain.extras)
    trace = by_command(tmp_path, video, "--model", maven, "--shares", "--resume", "--report")
    np.testing.assert_array_equal(trace.values, plain.values)
    shares = trace.extras["share_face"] + trace.extras["share_voice"]
    np.testing.assert_allclose(shares[trace.known], 1, atol=1e-6)
    assert '"share_face"' in (tmp_path / "example.html").read_text()
    refuses("gru reads one modality", gru, "--shares")
    refuses("zero-shot runs by itself", "zero-shot", "--shares")


def test_crops_that_were_cut_already_are_read_as_extract_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "crops").mkdir()
    for i in (1, 2, 4, 5):
        Image.fromarray(rng.integers(0, 255, (112, 112, 3), np.uint8)).save(tmp_path / "crops" / f"{i:05d}.png")
    recording = Recording("c", crops=tmp_path / "crops")
    extract([recording], tmp_path / "f", ["efficientnet-lite0"], ExtractConfig(fps=Fraction(5)))
    table = FeatureStore(tmp_path / "f").get("efficientnet-lite0", "c")
    model = sized("gru", "tiny", {"visual": table.dim})
    checkpoint.save(model, tmp_path / "m", extra={"features": {"visual": "efficientnet-lite0"}})
    expected = TrainedModel.load(tmp_path / "m").predict(Sequence("c", table.timeline, {"visual": table}))
    trace = affectrace.load(tmp_path / "m").predict(recording, fps="5")
    assert isinstance(trace, Trace)
    assert trace.timeline == table.timeline
    assert table.valid.tolist() == [True, True, False, True, True]
    np.testing.assert_allclose(trace.values, expected.values, atol=1e-4)


def test_several_checkpoints_are_the_mean_of_their_traces(
    data: Path, video: Path, mamba: Path, gru: Path, tmp_path: Path
) -> None:
    one, other = (from_store(folder, data) for folder in (mamba, gru))
    trace = by_command(tmp_path, "--model", mamba, gru, video)  # what is no model is a recording
    seen = trace.known
    assert seen.any()
    np.testing.assert_allclose(trace.values[seen], ((one.values + other.values) / 2)[seen], atol=1e-6)
    assert np.abs(one.values - other.values)[seen].max() > 1e-3
    assert trace.source == f"{one.source}+{other.source}"
    assert [m["checkpoint"] for m in trace.provenance["model"]["mean_of"]] == [one.source, other.source]
    assert trace.provenance["features"]["face"]["name"] == "mesh-geometry"
    assert np.isfinite(trace.extras["face_x"]).any()
    run = json.loads((tmp_path / "run.json").read_text())["options"]
    assert (run["model"], run["inputs"]) == ([str(mamba), str(gru)], [str(video)])
    again: Any = affectrace.load([mamba, gru]).predict(video, fps=FPS)
    np.testing.assert_array_equal(again.values, trace.values)


def test_windows_instead_of_carried_state(
    data: Path, video: Path, mamba: Path, maven: Path, tmp_path: Path, refuses: Refuses, capsys: Any
) -> None:
    model, scheme = TrainedModel.load(mamba), WindowScheme(20, 10)
    expected = predict_sequence(model.model, as_sequence(model, data), statistics=model.statistics, scheme=scheme)
    run = (tmp_path, video, "--model", mamba)
    carried = by_command(*run)
    trace = by_command(*run, "--windows", "20:10", "--resume")
    np.testing.assert_array_equal(trace.valid, carried.valid)
    np.testing.assert_allclose(trace.values[trace.valid], expected.values[trace.valid], atol=1e-6)
    assert np.abs(trace.values - carried.values)[trace.valid].max() > 1e-4
    assert trace.provenance["options"]["windows"] == "20:10"
    assert trace.provenance["model"]["windows"]["size"] == 20
    assert "windows" not in carried.provenance["options"]
    assert carried.provenance["model"]["windows"] is None
    again = ["--model", str(mamba), "--windows", "20:10", "--fps", FPS, "--resume", "--out", str(tmp_path)]
    assert main(["predict", str(video), *again]) == 0
    assert "already done" in "".join(capsys.readouterr())
    refuses("'20' is not SIZE:STRIDE", mamba, "--windows", "20")
    refuses("is not causal and always reads windows", maven, "--windows", "20:10")
    refuses("zero-shot runs by itself", "zero-shot", "--windows", "20:10")


def test_smoothing_is_applied_named_and_taken_from_the_checkpoint(
    video: Path, mamba: Path, gru: Path, tmp_path: Path, refuses: Refuses
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(mamba, folder)
    run = (tmp_path / "o", video, "--model", folder)
    plain = by_command(*run)
    assert "smooth" not in plain.provenance["options"]
    expected = smoothed(plain, "median", 2.0)
    assert np.nanmax(np.abs(expected.values - plain.values)) > 1e-4
    asked = by_command(*run, "--smooth", "median:2", "--resume")
    keep_choice(folder, "median", 2.0, {})
    kept = by_command(tmp_path / "kept", *run[1:], "--smooth", "auto")
    for trace in (asked, kept):
        np.testing.assert_allclose(trace.values, expected.values, atol=1e-12)
        assert trace.provenance["options"]["smooth"] == "median:2"
        assert trace.source == plain.source
    refuses("has no stored smoothing", gru, "--smooth", "auto")
    refuses("has no stored smoothing", folder, gru, "--smooth", "auto")
    refuses("zero-shot has no stored smoothing", "zero-shot", "--smooth", "auto")
    refuses("smoothing 'median' states no window in seconds", "zero-shot", "--smooth", "median")
    refuses("unknown smoothing 'box'", "zero-shot", "--smooth", "box:1")


def test_models_that_cannot_be_averaged(mamba: Path, maven: Path, tmp_path: Path, refuses: Refuses) -> None:
    refuses("the models read different features", mamba, maven)
    refuses("zero-shot runs by itself", mamba, "zero-shot")
    refuses("zero-shot runs by itself", "zero-shot", mamba)
    refuses("--shares needs a single model", maven, maven, "--shares")
    refuses("absent: no such file", mamba, tmp_path / "absent")
    with pytest.raises(InputError, match="no model is named"):
        affectrace.load([])

"""A trained checkpoint on recordings: from `affectrace extract` and `train` to `affectrace predict --model`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import affectrace
import made_media as made
from affectrace.cli import main
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError, MediaError, UnknownNameError
from affectrace.evaluate.smoothing import keep_choice, smoothed
from affectrace.features.store import FeatureStore
from affectrace.inference.run import TrainedModel, predict_sequence
from affectrace.models import checkpoint
from affectrace.recording import Recording
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.trace import Trace

FPS = "6"

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of the example, in two of them no face; their face geometry and prosody, by the command; the same as
    two recordings with made-up labels."""
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


def as_sequence(model: TrainedModel, data: Path) -> Sequence:
    store = FeatureStore(data / "f")
    inputs = {stream: store.get(name, "example") for stream, name in model.features.items()}
    return Sequence("example", store.get("mesh-geometry", "example").timeline, inputs, config=model.sequences)


def from_store(folder: Path, data: Path) -> Trace:
    """The slow twin: features that `extract` wrote, read back, through the model."""
    model = TrainedModel.load(folder)
    return model.predict(as_sequence(model, data))


def test_a_trained_checkpoint_predicts_a_video_as_it_predicts_its_features(data: Path) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    model = affectrace.load(folder)
    trace = model.predict(data / "example.mp4", fps=FPS)
    expected = from_store(folder, data)
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


def test_by_the_command_line_with_report_overlay_and_resume(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    run = [
        "predict",
        str(data / "example.mp4"),
        "--model",
        str(folder),
        "--fps",
        FPS,
        "--out",
        str(tmp_path / "o"),
        "--json",
    ]
    assert main([*run, "--report", "--overlay", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    trace = Trace.load(result["csv"])
    assert trace.source.startswith("mamba-va@")
    page = Path(result["report"]).read_text()
    assert trace.source in page
    assert Path(result["overlay"]).stat().st_size > 10_000
    assert main([*run, "--report", "--overlay", "--resume"]) == 0
    assert "already done" in "".join(capsys.readouterr())
    assert main(["summary", str(tmp_path / "o"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"][0]["share_valid"] > 0.8


def test_sound_alone_and_several_streams(data: Path, tmp_path: Path) -> None:
    folder = trained(data, "maven", "face=mesh-geometry", "voice=prosody")
    model = affectrace.load(str(folder))
    whole = model.predict(data / "example.mp4", fps=FPS)
    np.testing.assert_allclose(whole.values, from_store(folder, data).values, atol=1e-6)
    heard = model.predict(data / "example.mp4", modalities=("voice",), hop_s=0.5)
    assert isinstance(heard, Trace)
    assert heard.person == "voice"
    assert len(heard) == 16
    assert heard.valid.all()
    assert not heard.extras
    assert {s.kind for s in heard.spans} == {"speech"}


@pytest.mark.parametrize("align", ["mean", "hold"])
def test_features_are_aligned_as_in_training(data: Path, tmp_path: Path, align: str) -> None:
    folder = trained(data, "maven", "face=mesh-geometry", "voice=prosody")
    found = checkpoint.load(folder)
    extra = {**found.extra, "sequences": {**found.extra["sequences"], "align": align}}
    shutil.copytree(folder, tmp_path / "m")
    checkpoint.save(found.model, tmp_path / "m", extra=extra)
    predicted = affectrace.load(tmp_path / "m").predict(data / "example.mp4", fps=FPS)
    np.testing.assert_allclose(predicted.values, from_store(tmp_path / "m", data).values, atol=1e-6)
    assert np.abs(predicted.values - from_store(folder, data).values).max() > 1e-4


def test_other_weights_than_those_of_training_are_refused(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    found = checkpoint.load(folder)
    extra = {**found.extra, "extractors": {"face": "0123456789abcdef"}}
    checkpoint.save(found.model, tmp_path / "m", extra=extra)
    with pytest.raises(
        InputError, match=r"'face' was made with other weights .* than by mesh-geometry .*face=mesh-geometry=F"
    ):
        affectrace.load(tmp_path / "m").predict(data / "example.mp4", fps=FPS)
    several = [str(data / "example.mp4"), str(data / "a.mp4")]
    assert main(["predict", *several, "--model", str(tmp_path / "m"), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("in training than by") == 1  # told once, before the work
    assert not (tmp_path / "o").exists()


def test_recordings_and_models_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    model: Any = affectrace.load(folder)
    sound = tmp_path / "tone.wav"
    import wave

    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes((np.sin(np.arange(16_000) / 9) * 9000).astype("<i2").tobytes())
    with pytest.raises(MediaError, match=r"tone: has nothing the model reads \(mesh-geometry\)"):
        model.predict(sound)
    with pytest.raises(InputError, match="add visual to --modalities"):
        model.predict(data / "example.mp4", modalities=("voice",))
    with pytest.raises(UnknownNameError, match=r"unknown stream 'fac'; did you mean 'face'"):
        affectrace.load(folder, features={"fac": "fer"})
    with pytest.raises(UnknownNameError, match="unknown features 'enc'"):
        affectrace.load(folder, features={"face": "enc"}).predict(data / "example.mp4")
    found = checkpoint.load(folder)
    checkpoint.save(found.model, tmp_path / "bare")
    with pytest.raises(InputError, match=r"does not name the features it reads.*face=EXTRACTOR"):
        affectrace.load(tmp_path / "bare")


def test_a_video_without_a_face_gives_a_trace_that_is_nowhere_valid(data: Path, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        Image.fromarray(np.full((90, 120, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    model = affectrace.load(trained(data, "mamba-va", "mesh-geometry"))
    trace = model.predict(replace(Recording("grey", video=tmp_path)), fps="3")
    assert isinstance(trace, Trace)
    assert trace.person == "none"
    assert not trace.valid.any()
    assert set(trace.reason) == {"no face"}
    assert "no face was found in any frame" in trace.provenance["notes"]


def test_shares_of_modalities_are_columns(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trained(data, "maven", "face=mesh-geometry", "voice=prosody")
    base = [
        "predict",
        str(data / "example.mp4"),
        "--model",
        str(folder),
        "--fps",
        FPS,
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    assert main(base) == 0
    plain = Trace.load(tmp_path / "o" / "example.csv")
    assert not any(name.startswith("share_") for name in plain.extras)
    assert main([*base, "--shares", "--resume", "--report"]) == 0
    trace = Trace.load(tmp_path / "o" / "example.csv")
    np.testing.assert_array_equal(trace.values, plain.values)
    shares = trace.extras["share_face"] + trace.extras["share_voice"]
    np.testing.assert_allclose(shares[trace.known], 1, atol=1e-6)
    assert '"share_face"' in (tmp_path / "o" / "example.html").read_text()
    one = trained(data, "gru", "mesh-geometry")
    capsys.readouterr()
    refused(data, tmp_path, capsys, "gru reads one modality", one, "--shares")
    refused(data, tmp_path, capsys, "zero-shot runs by itself", "zero-shot", "--shares")


def test_crops_that_were_cut_already_are_read_as_extract_reads_them(tmp_path: Path) -> None:
    from PIL import Image

    from affectrace.features.config import ExtractConfig
    from affectrace.features.extract import extract
    from affectrace.inference.run import sized

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


def by_command(out: Path, *args: object) -> Trace:
    assert main(["predict", "--out", str(out), "--fps", FPS, "--quiet", *map(str, args)]) == 0
    return Trace.load(out / "example.csv")


def refused(data: Path, tmp_path: Path, capsys: Any, message: str, *args: object) -> None:
    """`predict` of the example with these models and options is refused in one line before anything is written."""
    out = ["--out", str(tmp_path / "refused"), "--model", *map(str, args)]
    assert main(["predict", str(data / "example.mp4"), *out]) == 2
    error = capsys.readouterr().err
    assert error.count(message) == 1, error
    assert error.count("\n") == 1
    assert not (tmp_path / "refused").exists()


def test_several_checkpoints_are_the_mean_of_their_traces(data: Path, tmp_path: Path) -> None:
    folders = [trained(data, "mamba-va", "mesh-geometry"), trained(data, "gru", "mesh-geometry")]
    one, other = (from_store(f, data) for f in folders)
    trace = by_command(tmp_path / "o", "--model", *folders, data / "example.mp4")  # what is no model is a recording
    seen = trace.known
    assert seen.any()
    np.testing.assert_allclose(trace.values[seen], ((one.values + other.values) / 2)[seen], atol=1e-6)
    assert np.abs(one.values - other.values)[seen].max() > 1e-3
    assert trace.source == f"{one.source}+{other.source}"
    about = trace.provenance["model"]
    assert [m["checkpoint"] for m in about["mean_of"]] == [one.source, other.source]
    assert trace.provenance["features"]["face"]["name"] == "mesh-geometry"
    assert np.isfinite(trace.extras["face_x"]).any()
    run = json.loads((tmp_path / "o" / "run.json").read_text())["options"]
    assert (run["model"], run["inputs"]) == ([str(f) for f in folders], [str(data / "example.mp4")])
    again: Any = affectrace.load(folders).predict(data / "example.mp4", fps=FPS)
    np.testing.assert_array_equal(again.values, trace.values)


def test_windows_instead_of_carried_state(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    model = TrainedModel.load(folder)
    expected = predict_sequence(
        model.model, as_sequence(model, data), statistics=model.statistics, scheme=WindowScheme(20, 10)
    )
    carried = by_command(tmp_path / "o", data / "example.mp4", "--model", folder)
    trace = by_command(tmp_path / "o", data / "example.mp4", "--model", folder, "--windows", "20:10", "--resume")
    np.testing.assert_array_equal(trace.valid, carried.valid)
    np.testing.assert_allclose(trace.values[trace.valid], expected.values[trace.valid], atol=1e-6)
    assert np.abs(trace.values - carried.values)[trace.valid].max() > 1e-4
    assert trace.provenance["options"]["windows"] == "20:10"
    assert trace.provenance["model"]["windows"]["size"] == 20
    assert "windows" not in carried.provenance["options"]
    assert carried.provenance["model"]["windows"] is None
    again = ["--model", str(folder), "--windows", "20:10", "--fps", FPS, "--resume", "--out", str(tmp_path / "o")]
    assert main(["predict", str(data / "example.mp4"), *again]) == 0
    assert "already done" in "".join(capsys.readouterr())
    fixed = trained(data, "maven", "face=mesh-geometry", "voice=prosody")
    refused(data, tmp_path, capsys, "'20' is not SIZE:STRIDE", folder, "--windows", "20")
    refused(data, tmp_path, capsys, "is not causal and always reads windows", fixed, "--windows", "20:10")
    refused(data, tmp_path, capsys, "zero-shot runs by itself", "zero-shot", "--windows", "20:10")


def test_smoothing_is_applied_named_and_taken_from_the_checkpoint(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "m"
    shutil.copytree(trained(data, "mamba-va", "mesh-geometry"), folder)
    plain = by_command(tmp_path / "o", data / "example.mp4", "--model", folder)
    assert "smooth" not in plain.provenance["options"]
    expected = smoothed(plain, "median", 2.0)
    assert np.nanmax(np.abs(expected.values - plain.values)) > 1e-4
    for wish in ("median:2", "auto"):
        if wish == "auto":
            keep_choice(folder, "median", 2.0, {})
        trace = by_command(tmp_path / wish[:4], data / "example.mp4", "--model", folder, "--smooth", wish)
        np.testing.assert_allclose(trace.values, expected.values, atol=1e-12)
        assert trace.provenance["options"]["smooth"] == "median:2"
        assert trace.source == plain.source
    again = by_command(tmp_path / "o", data / "example.mp4", "--model", folder, "--smooth", "median:2", "--resume")
    np.testing.assert_allclose(again.values, expected.values, atol=1e-12)
    bare = trained(data, "gru", "mesh-geometry")
    refused(data, tmp_path, capsys, "no smoothing was kept with it", bare, "--smooth", "auto")
    refused(data, tmp_path, capsys, "no smoothing was kept with it", folder, bare, "--smooth", "auto")
    refused(data, tmp_path, capsys, "zero-shot has no smoothing kept beside it", "zero-shot", "--smooth", "auto")
    refused(data, tmp_path, capsys, "smoothing 'median' states no window in seconds", "zero-shot", "--smooth", "median")
    refused(data, tmp_path, capsys, "unknown smoothing 'box'", "zero-shot", "--smooth", "box:1")


def test_models_that_cannot_be_averaged(data: Path, tmp_path: Path, capsys: Any) -> None:
    one = trained(data, "mamba-va", "mesh-geometry")
    two = trained(data, "maven", "face=mesh-geometry", "voice=prosody")
    refused(data, tmp_path, capsys, "the models read different features", one, two)
    refused(data, tmp_path, capsys, "zero-shot runs by itself", one, "zero-shot")
    refused(data, tmp_path, capsys, "zero-shot runs by itself", "zero-shot", one)
    refused(data, tmp_path, capsys, "--shares needs a single model", two, two, "--shares")
    refused(data, tmp_path, capsys, "absent: no such file", one, tmp_path / "absent")
    found = checkpoint.load(one)
    checkpoint.save(found.model, tmp_path / "m", extra={**found.extra, "extractors": {"face": "0123456789abcdef"}})
    with pytest.raises(
        InputError,
        match=r"'face' was made with other weights .* in training than by mesh-geometry",
    ):
        affectrace.load([one, tmp_path / "m"]).predict(data / "example.mp4", fps=FPS)
    with pytest.raises(InputError, match="no model is named"):
        affectrace.load([])

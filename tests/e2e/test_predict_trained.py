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
from affectrace.cli import main
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError, MediaError, UnknownNameError
from affectrace.features.store import FeatureStore
from affectrace.models import checkpoint
from affectrace.models_run import TrainedModel
from affectrace.recording import Recording
from affectrace.sequences import Sequence
from affectrace.trace import Trace

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "example.mp4"
FPS = "4"

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's face geometry and prosody, by the command; as two recordings with made-up labels."""
    root = tmp_path_factory.mktemp("trained")
    names = "mesh-geometry,prosody"
    assert main(["extract", str(EXAMPLE), "--features", names, "--out", str(root / "f"), "--fps", FPS, "--quiet"]) == 0
    store = FeatureStore(root / "f")
    face = store.get("mesh-geometry", "example")
    t = np.arange(len(face.timeline)) / 20
    recordings = []
    for name, split in (("a", "train"), ("b", "validation")):
        for extractor in ("mesh-geometry", "prosody"):
            store.put(store.get(extractor, "example").features(), name)
        labels = Trace(name, face.timeline, 0.5 * np.sin(t), 0.5 * np.cos(t), t > -1, np.full(len(t), ""), "labels")
        shutil.copy(EXAMPLE, root / f"{name}.mp4")
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


def from_store(folder: Path, data: Path) -> Trace:
    """The slow twin: features that `extract` wrote, read back, through the model."""
    model, store = TrainedModel.load(folder), FeatureStore(data / "f")
    inputs = {stream: store.get(name, "example") for stream, name in model.features.items()}
    clock = store.get("mesh-geometry", "example").timeline
    return model.predict(Sequence("example", clock, inputs, config=model.sequences))


def test_a_trained_checkpoint_predicts_a_video_as_it_predicts_its_features(data: Path) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    model = affectrace.load(folder)
    trace = model.predict(EXAMPLE, fps=FPS)
    expected = from_store(folder, data)
    assert isinstance(trace, Trace)
    assert trace.timeline == expected.timeline
    assert trace.source == expected.source == model.source
    seen = FeatureStore(data / "f").get("mesh-geometry", "example").valid
    known = np.maximum.accumulate(seen)
    assert not seen.all()
    np.testing.assert_array_equal(trace.valid, known)
    np.testing.assert_allclose(trace.values[known], expected.values[known], atol=1e-6)
    assert np.isfinite(trace.extras["face_x"]).sum() == seen.sum()
    assert trace.provenance["features"]["face"]["name"] == "mesh-geometry"
    assert "torch" in trace.provenance["versions"]
    assert any("no face in" in note for note in trace.provenance["notes"])


def test_by_the_command_line_with_report_overlay_and_resume(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    run = ["predict", str(EXAMPLE), "--model", str(folder), "--fps", FPS, "--out", str(tmp_path / "o"), "--json"]
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
    whole = model.predict(EXAMPLE, fps=FPS)
    np.testing.assert_allclose(whole.values, from_store(folder, data).values, atol=1e-6)
    heard = model.predict(EXAMPLE, modalities=("voice",), hop_s=0.5)
    assert isinstance(heard, Trace)
    assert heard.person == "voice"
    assert len(heard) == round(heard.timeline.end_s / 0.5 + 0.49)
    assert heard.valid.all()
    assert not heard.extras
    assert {s.kind for s in heard.spans} == {"speech"}


def test_other_weights_than_those_of_training_are_refused(data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = trained(data, "mamba-va", "mesh-geometry")
    found = checkpoint.load(folder)
    extra = {**found.extra, "extractors": {"face": "0123456789abcdef"}}
    checkpoint.save(found.model, tmp_path / "m", extra=extra)
    with pytest.raises(
        InputError, match=r"'face' was trained on mesh-geometry with other weights .*face=mesh-geometry=F"
    ):
        affectrace.load(tmp_path / "m").predict(EXAMPLE, fps=FPS)
    several = [str(EXAMPLE), str(data / "a.mp4")]
    assert main(["predict", *several, "--model", str(tmp_path / "m"), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("was trained on") == 1  # told once, before the work
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
    with pytest.raises(InputError, match=r"none of it is asked for; add face to --modalities"):
        model.predict(EXAMPLE, modalities=("voice",))
    with pytest.raises(UnknownNameError, match=r"unknown stream 'fac'; did you mean 'face'"):
        affectrace.load(folder, features={"fac": "fer"})
    with pytest.raises(InputError, match=r"'face' is made by 'enc', which is no extractor of ours"):
        affectrace.load(folder, features={"face": "enc"})
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
    base = ["predict", str(EXAMPLE), "--model", str(folder), "--fps", FPS, "--out", str(tmp_path / "o"), "--quiet"]
    assert main(base) == 0
    plain = Trace.load(tmp_path / "o" / "example.csv")
    assert not any(name.startswith("share_") for name in plain.extras)
    assert main([*base, "--shares", "--resume", "--report"]) == 0
    trace = Trace.load(tmp_path / "o" / "example.csv")
    np.testing.assert_array_equal(trace.values, plain.values)
    shares = trace.extras["share_face"] + trace.extras["share_voice"]
    np.testing.assert_allclose(shares[trace.valid], 1, atol=1e-6)
    assert '"share_face"' in (tmp_path / "o" / "example.html").read_text()
    one = trained(data, "gru", "mesh-geometry")
    for model, message in ((one, "gru reads one modality"), ("zero-shot", "zero-shot has no shares")):
        assert main(["predict", str(EXAMPLE), "--model", str(model), "--shares", "--out", str(tmp_path / "p")]) == 2
        assert message in capsys.readouterr().err


def test_crops_that_were_cut_already_are_read_as_extract_reads_them(tmp_path: Path) -> None:
    from PIL import Image

    from affectrace.features.extract import ExtractConfig, extract
    from affectrace.models_run import sized

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

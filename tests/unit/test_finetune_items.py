"""Items: frames, audio chunks and text windows, their targets; their inputs are what extraction would read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_faces as made
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError
from affectrace.finetune import FinetuneConfig, finetune
from affectrace.finetune.config import AugmentConfig, ItemConfig
from affectrace.finetune.encoder import Encoder, load_encoder
from affectrace.finetune.face_crops import open_crops
from affectrace.finetune.labels import Affect, Expressions
from affectrace.finetune.objectives import TunedEncoder
from affectrace.finetune.tuner import open_items
from affectrace.media.audio import read_audio
from affectrace.media.transcript import read_transcript
from affectrace.recording import Recording
from affectrace.trace import Trace
from made_encoders import folder_of
from made_media import write_sound, write_video
from made_traces import trace
from near import assert_near

UNCHANGED = AugmentConfig(0.0, (1.0, 1.0), 0.0, 0.0, 0.0, 0.0)


def labelled(name: str, folder: Path, seconds: float, phase: float) -> Path:
    """Labels at 25 Hz over some seconds; the last half second is not labelled."""
    times = np.arange(round(25 * seconds)) / 25
    valence = np.where(times < seconds - 0.5, 0.9 * np.sin(times * 2 + phase), np.nan)
    return trace(valence, -valence, recording_id=name).save(folder / f"{name}.csv")


def spoken_set(folder: Path, n: int = 3, seconds: float = 4.0) -> Manifest:
    """Sound whose loudness follows valence, and words that follow its sign."""
    recordings = []
    for i in range(n):
        name, t = f"s{i}", np.arange(round(16000 * seconds)) / 16000
        level = 0.5 + 0.45 * np.sin(t * 2 + i)
        sound = 0.6 * level * np.sin(2 * np.pi * 220 * t)
        write_sound(folder / f"{name}.wav", sound[None], 16_000, "pcm_s16le")
        lines = []
        for k in range(int(seconds)):
            word = "good" if np.sin((k + 0.5) * 2 + i) > 0 else "bad"
            lines.append(f"[{k}.0s - {k}.9s]: very {word} night")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
        recordings.append(
            Recording(
                name,
                audio=folder / f"{name}.wav",
                transcript=folder / f"{name}.txt",
                labels=labelled(name, folder, seconds, i),
                split="validation" if i == n - 1 else "train",
            )
        )
    return Manifest("spoken", folder, tuple(recordings))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(f"minilm-l6={folder_of('minilm-l6', tmp_path_factory.mktemp('bert') / 'w')}")


@pytest.fixture(scope="module")
def images(vit: Path) -> Encoder:
    return load_encoder(f"mae-vit-l={vit}")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return spoken_set(tmp_path_factory.mktemp("spoken"))


def opened(encoder: Encoder, data: Manifest, store: Path, **more: Any) -> Any:
    config = FinetuneConfig(**{k: more.pop(k) for k in list(more) if k in ("items", "augment", "objective")})
    labels = None if config.objective == "mae" else Affect(data)
    return open_items(encoder, more.pop("recordings", list(data)), labels, config, store, what="training", **more)


def test_pictures(faces: Manifest, images: Encoder, tmp_path: Path) -> None:
    items = opened(images, faces, tmp_path, items=ItemConfig(every=3), augment=UNCHANGED)
    frames = [k for k in range(0, 24, 3) if k % 10 and k != 3]
    assert items.starts.tolist() == frames * 4
    assert items.names([0, len(frames)]) == [{"recording": "r0", "at": 6}, {"recording": "r1", "at": 6}]
    batch = items.batch(range(len(items)))
    assert batch.inputs["pixels"].shape == (len(items), 3, 32, 32)
    assert batch.target[: len(frames), 0, 0].numpy() == pytest.approx([0.9 * np.sin(k / 5) for k in frames], abs=1e-6)
    assert batch.mask.all()
    np.testing.assert_allclose(items.totals, batch.target.sum((0, 1)), atol=1e-5)
    # with nothing to change, a training picture is a validation picture
    assert torch.equal(items.batch([2], (0, 0)).inputs["pixels"], items.batch([2]).inputs["pixels"])


def test_order_and_changes_follow_seed_epoch_and_item(faces: Manifest, images: Encoder, tmp_path: Path) -> None:
    items = opened(images, faces, tmp_path)

    def order(seed: int, epoch: int, start: int = 0) -> list[tuple[int, ...]]:
        return [b.items for b in items.shuffled(8, seed, epoch, start, threads=2)]

    whole = order(0, 0)
    assert sorted(i for b in whole for i in b) == list(range(len(items)))
    assert order(0, 0, start=2) == whole[2:]
    assert whole not in (order(0, 1), order(1, 0))
    one, two = (next(iter(items.shuffled(8, 0, 0, 0, threads=t))) for t in (1, 2))
    assert torch.equal(one.inputs["pixels"], two.inputs["pixels"])
    assert next(b.items for b in items.in_order(8, 2)) == tuple(range(8))
    pixels = items.batch([0, 1, 2], (5, 0)).inputs["pixels"]
    assert torch.equal(items.batch([2, 0], (5, 0)).inputs["pixels"], pixels[[2, 0]])
    for other in ((5, 1), (6, 0), None):
        assert not torch.equal(items.batch([0, 1, 2], other).inputs["pixels"], pixels)


def test_sound_is_what_extraction_reads(spoken: Manifest, tmp_path: Path) -> None:
    encoder = load_encoder(f"hubert-base={folder_of('hubert-base', tmp_path / 'hubert')}")
    items = opened(encoder, spoken, tmp_path / "media", items=ItemConfig(chunk_s=1.5))
    network = TunedEncoder(encoder, 2).eval()
    audio = read_audio(spoken.root / "s0.wav")
    assert audio is not None
    mine = [i for i in range(len(items)) if items.recording_of[i] == 0]
    batch = items.batch(mine)
    rows = network.rows(batch.inputs).detach()
    seen = []
    for i, item in enumerate(mine):
        piece = items.pieces[item]
        chunk, mask = piece.source[1], piece.mask[:, 0]
        whole = encoder.module(torch.from_numpy(audio.samples[chunk.start : chunk.stop].copy())[None])[0]
        n = len(piece.mask)
        assert_near(rows[i, :n], whole[chunk.keep])
        starts = (chunk.first + np.arange(n)) * 0.02
        seen += (chunk.first + np.flatnonzero(mask)).tolist()
        middle = 0.9 * np.sin((np.floor(starts / 0.04 + 1e-6) * 0.04) * 2)  # of the frame a row lies in
        np.testing.assert_allclose(piece.target[mask, 0], middle[mask], atol=1e-6)
    assert seen == list(range(176))  # every row once, up to the end of the last labelled frame at 3.52 s
    again = opened(encoder, spoken, tmp_path / "media", items=ItemConfig(chunk_s=1.5))
    assert len(again) == len(items)
    assert len(list((tmp_path / "media").glob("*.npy"))) == 3


def test_words_are_what_extraction_reads(spoken: Manifest, words: Encoder, tmp_path: Path) -> None:
    short = opened(words, spoken, tmp_path, items=ItemConfig(window_tokens=8))
    assert len(short) > 3
    assert short.batch(range(len(short))).inputs["ids"].shape[1] <= 8
    items = opened(words, spoken, tmp_path)
    assert len(items) == 3
    batch = items.batch(range(3))
    rows = TunedEncoder(words, 2).eval().rows(batch.inputs).detach().numpy()
    for i, recording in enumerate(spoken):
        transcript = read_transcript(recording.transcript or Path())
        assert_near(rows[i], words.extractor(transcript).values)
        label = Trace.load(recording.labels or Path())
        for k in (0, 5, 11):
            word = transcript.words[k]
            over = (label.timeline.ends > word.start_s) & (label.timeline.times < word.end_s) & label.known
            assert bool(batch.mask[i, k, 0]) == bool(over.any())
            if over.any():
                assert float(batch.target[i, k, 0]) == pytest.approx(label.valence[over].mean(), abs=1e-6)


@pytest.mark.parametrize("name", ["hubert-base", "minilm-l6"])
def test_audio_and_text_encoders_are_tuned(spoken: Manifest, tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = []
    how = ItemConfig(chunk_s=2.0)
    c = FinetuneConfig(epochs=3, batch_size=2, lr=2e-3, frozen_blocks=1, accelerator="cpu", items=how)
    start, out = folder_of(name, tmp_path / "start"), tmp_path / "out"
    sets = spoken.of_split("train"), spoken.of_split("validation")
    done = finetune(f"{name}={start}", *sets, out, c, labels=Affect(spoken), report=lambda r: rows.append(dict(r)))
    assert min(r["loss"] for r in rows) < rows[0]["loss"]
    assert all(np.isfinite(r["mean_ccc"]) for r in rows)
    assert load_encoder(f"{name}={done.best}").place.sha256 != load_encoder(f"{name}={start}").place.sha256


def test_recordings_without_what_is_read_are_left_out(
    faces: Manifest, spoken: Manifest, words: Encoder, images: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="none of the training recordings has a transcript, which 'minilm-l6' reads"):
        opened(words, faces, tmp_path)
    notes: list[str] = []
    silent = Recording("silent", crops=tmp_path, labels=spoken["s0"].labels)
    items = opened(words, spoken, tmp_path, recordings=[silent, *spoken], note=notes.append)
    assert items.recordings == ("s0", "s1", "s2")
    assert notes == ["1 training recordings have no transcript (first: silent): left out"]
    (tmp_path / "broken.mp4").write_text("no video")
    broken = Recording("broken", video=tmp_path / "broken.mp4", labels=faces["r0"].labels)
    items = opened(images, faces, tmp_path / "m", recordings=[broken, faces["r0"]], note=notes.append)
    assert items.recordings == ("r0",)
    assert notes[1].startswith(f"broken: {tmp_path / 'broken.mp4'}: ")


def test_crops_with_times_need_a_rate(faces: Manifest, images: Encoder, tmp_path: Path) -> None:
    timed = Manifest("timed", tmp_path, (replace(faces["r0"], labels=labelled("r0", tmp_path, 1.0, 0.0)),))
    with pytest.raises(InputError, match=r"the times of its crops are unknown; give their --items.fps"):
        opened(images, timed, tmp_path)
    items = opened(images, timed, tmp_path, items=ItemConfig(fps=25.0))
    assert items.starts.tolist() == [k for k in range(13) if k != 3]


def test_names_of_crops(images: Encoder, tmp_path: Path) -> None:
    few = made.made_set(tmp_path / "faces", n=5, train=1, validation=0)
    folder = few["r0"].crops or Path()
    shutil.copyfile(folder / "00002.png", folder / "00002.jpg")
    (folder / "notes.txt").write_text("not a picture")
    found = opened(images, few, tmp_path)
    assert found.starts.tolist() == [1, 2, 4]
    assert found.folders[0].names.tolist() == [b"00002.jpg", b"00003.png", b"00005.png"]
    last = folder / "00005.png"
    for name in (f"{'9' * 40}.png", "face.png"):
        last = last.rename(folder / name)
        with pytest.raises(InputError, match="is not named by its frame number; name crops 00001.jpg"):
            opened(images, few, tmp_path)
    unlabelled = opened(images, few, tmp_path, objective="mae").folders[0].names.tolist()
    assert unlabelled[1:] == [b"00002.jpg", b"00002.png", b"00003.png", b"face.png"]
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="the training recordings have no picture"):
        opened(images, few, tmp_path, objective="mae")


def test_labels_by_frame_follow_crops_at_another_rate(
    faces: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes are a row per frame of the video at 10 Hz, its crops are cut at 5 Hz."""
    write_video(tmp_path / "r.mp4", range(10), Fraction(1, 10))
    (tmp_path / "r.txt").write_text("calm,joy\n" + "0\n" * 5 + "1\n" * 5)
    recording = Recording("r", video=tmp_path / "r.mp4")
    labels = Expressions.of(str(tmp_path), Manifest("m", tmp_path, (recording,)))
    monkeypatch.setattr("affectrace.finetune.face_crops.cut_crops", lambda *args, **more: faces["r0"].crops)
    found = open_crops(recording, labels, tmp_path, 32, ItemConfig(fps=5.0))
    assert found is not None
    assert found.frames.tolist() == [0, 1, 2, 4]
    assert found.target.argmax(1).tolist() == [0, 0, 0, 1]

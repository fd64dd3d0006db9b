"""Items: which frames, chunks and words there are, their targets, and that they are what extraction would read."""

from __future__ import annotations

import shutil
import wave
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
from affectrace.finetune.data import Items, Sample
from affectrace.finetune.encoder import load_encoder
from affectrace.finetune.labels import Affect
from affectrace.finetune.objectives import TunedEncoder, word_means
from affectrace.finetune.tuner import open_items
from affectrace.media.audio import read_audio
from affectrace.media.transcript import read_transcript
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from made_encoders import folder_of
from near import assert_near


def labelled(name: str, folder: Path, seconds: float, phase: float) -> Path:
    """Labels at 25 Hz over some seconds; the last half second is not labelled."""
    n = round(25 * seconds)
    clock = Timeline.regular(n, 25)
    valid = clock.times < seconds - 0.5
    v = np.where(valid, 0.9 * np.sin(clock.times * 2 + phase), np.nan)
    reason = np.where(valid, "", "not labelled")
    return Trace(name, clock, v, -v, valid, reason, "labels").save(folder / f"{name}.csv")


def spoken_set(folder: Path, n: int = 3, seconds: float = 4.0) -> Manifest:
    """Sound whose loudness follows valence, and words that follow its sign."""
    recordings = []
    for i in range(n):
        name, t = f"s{i}", np.arange(round(16000 * seconds)) / 16000
        level = 0.5 + 0.45 * np.sin(t * 2 + i)
        sound = (level * np.sin(2 * np.pi * 220 * t) * 20000).astype("<i2")
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(sound.tobytes())
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


def test_pictures(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=25, train=1, validation=1)
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'vit')}")
    config = FinetuneConfig(items=ItemConfig(every=3), augment=AugmentConfig.none())
    items = open_items(encoder, list(faces), Affect(faces), config, tmp_path, what="training")
    frames = [k for k in range(0, 25, 3) if k % 10 and k != 3]
    assert items.number.tolist() == frames * 2
    assert items.names([0, len(frames)]) == [{"recording": "r0", "at": 6}, {"recording": "r1", "at": 6}]
    batch = items.batch(range(len(items)))
    assert batch.inputs["pixels"].shape == (len(items), 3, 32, 32)
    expected = [0.9 * np.sin(k / 5) for k in frames]
    assert batch.target[: len(frames), 0, 0].numpy() == pytest.approx(expected, abs=1e-6)
    assert batch.mask.all()
    np.testing.assert_allclose(items.totals, batch.target.sum((0, 1)), atol=1e-5)
    # with nothing to change, a training picture is a validation picture
    assert torch.equal(items.batch([2], (0, 0)).inputs["pixels"], items.batch([2]).inputs["pixels"])


def test_the_order_follows_seed_and_epoch(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=20, train=1, validation=1)
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'vit')}")
    items = open_items(encoder, list(faces), Affect(faces), FinetuneConfig(), tmp_path, what="training")

    def order(seed: int, epoch: int, start: int = 0) -> list[tuple[int, ...]]:
        return [b.items for b in items.shuffled(8, seed, epoch, start, threads=2)]

    whole = order(0, 0)
    assert sorted(i for b in whole for i in b) == list(range(len(items)))
    assert order(0, 0, start=2) == whole[2:]
    assert whole not in (order(0, 1), order(1, 0))
    one, two = (next(iter(items.shuffled(8, 0, 0, 0, threads=t))) for t in (1, 2))
    assert torch.equal(one.inputs["pixels"], two.inputs["pixels"])
    assert next(b.items for b in items.in_order(8, 2)) == tuple(range(8))


def test_sound_is_what_extraction_reads(tmp_path: Path) -> None:
    spoken = spoken_set(tmp_path)
    encoder = load_encoder(f"hubert-base={folder_of('hubert-base', tmp_path / 'hubert')}")
    config = FinetuneConfig(items=ItemConfig(chunk_s=1.5))
    items: Any = open_items(encoder, list(spoken), Affect(spoken), config, tmp_path / "media", what="training")
    network = TunedEncoder(encoder, 2).eval()
    audio = read_audio(tmp_path / "s0.wav")
    assert audio is not None
    mine = [i for i in range(len(items)) if items.of[i] == 0]
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
    again = open_items(encoder, list(spoken), Affect(spoken), config, tmp_path / "media", what="training")
    assert len(again) == len(items)
    assert len(list((tmp_path / "media").glob("*.npy"))) == 3


def test_words_are_what_extraction_reads(tmp_path: Path) -> None:
    spoken = spoken_set(tmp_path)
    encoder = load_encoder(f"minilm-l6={folder_of('minilm-l6', tmp_path / 'bert')}")
    items: Any = open_items(encoder, list(spoken), Affect(spoken), FinetuneConfig(), tmp_path, what="training")
    assert len(items) == 3
    network = TunedEncoder(encoder, 2).eval()
    batch = items.batch(range(3))
    rows = network.rows(batch.inputs).detach().numpy()
    for i in range(3):
        transcript = read_transcript(tmp_path / f"s{i}.txt")
        features = encoder.extractor(transcript)
        assert_near(rows[i], features.values)
        words = transcript.words
        label = Trace.load(tmp_path / f"s{i}.csv")
        for k in (0, 5, 11):
            over = (label.timeline.ends > words[k].start_s) & (label.timeline.times < words[k].end_s) & label.known
            assert bool(batch.mask[i, k, 0]) == bool(over.any())
            if over.any():
                assert float(batch.target[i, k, 0]) == pytest.approx(label.valence[over].mean(), abs=1e-6)


def test_long_transcripts_go_in_windows(tmp_path: Path) -> None:
    spoken = spoken_set(tmp_path, seconds=12.0)
    encoder = load_encoder(f"minilm-l6={folder_of('minilm-l6', tmp_path / 'bert')}")
    config = FinetuneConfig(items=ItemConfig(window_tokens=16))
    items: Any = open_items(encoder, [spoken["s0"]], Affect(spoken), config, tmp_path, what="training")
    assert len(items) > 2
    assert sum(len(w.mask) for w in items.pieces) >= 36
    assert max(len(w.source[0]) for w in items.pieces) <= 14


def test_word_means() -> None:
    vectors = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    row_of = torch.tensor([[-1, 0, 0, 1]])
    assert word_means(vectors, row_of, 2).tolist() == [[[3.0], [8.0]]]
    assert word_means(vectors, torch.full((1, 4), -1), 1).tolist() == [[[0.0]]]


@pytest.mark.parametrize("name", ["hubert-base", "whisper-tiny.en", "minilm-l6"])
def test_sound_and_words_are_tuned(tmp_path: Path, name: str) -> None:
    spoken = spoken_set(tmp_path)
    rows: list[dict[str, Any]] = []
    c = FinetuneConfig(
        epochs=4, batch_size=2, lr=2e-3, frozen_blocks=1, accelerator="cpu", items=ItemConfig(chunk_s=2.0)
    )
    done = finetune(
        f"{name}={folder_of(name, tmp_path / 'start')}",
        [r for r in spoken if r.split == "train"],
        [r for r in spoken if r.split == "validation"],
        tmp_path / "out",
        c,
        labels=Affect(spoken),
        report=lambda r: rows.append(dict(r)),
    )
    assert min(r["loss"] for r in rows) < rows[0]["loss"]
    assert all(np.isfinite(r["mean_ccc"]) for r in rows)
    again = load_encoder(f"{name}={done.best}")
    assert again.place.sha256 != load_encoder(f"{name}={tmp_path / 'start'}").place.sha256


def test_recordings_without_what_is_read(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=5, train=1, validation=1)
    encoder = load_encoder(f"minilm-l6={folder_of('minilm-l6', tmp_path / 'bert')}")
    with pytest.raises(InputError, match="none of the training recordings has a transcript, which 'minilm-l6' reads"):
        open_items(encoder, list(faces), Affect(faces), FinetuneConfig(), tmp_path, what="training")
    spoken = spoken_set(tmp_path)
    notes: list[str] = []
    silent = Recording("silent", crops=tmp_path, labels=spoken["s0"].labels)
    items = open_items(
        encoder, [silent, *spoken], Affect(spoken), FinetuneConfig(), tmp_path, what="training", note=notes.append
    )
    assert items.recordings == ("s0", "s1", "s2")
    assert notes == ["1 training recordings have no transcript (first: silent): left out"]


def test_crops_with_times_need_a_rate(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=25, train=1, validation=1)
    from dataclasses import replace

    timed = Manifest("timed", tmp_path, (replace(faces["r0"], labels=labelled("r0", tmp_path, 1.0, 0.0)),))
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'vit')}")
    with pytest.raises(InputError, match=r"when its crops are shown is not known; give their --items.fps"):
        open_items(encoder, list(timed), Affect(timed), FinetuneConfig(), tmp_path, what="training")
    config = FinetuneConfig(items=ItemConfig(fps=25.0))
    items = open_items(encoder, list(timed), Affect(timed), config, tmp_path, what="training")
    assert items.number.tolist() == [k for k in range(13) if k != 3]


def test_names_of_crops(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=5, train=1, validation=1)
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'vit')}")
    folder = tmp_path / "faces" / "crops" / "r0"
    shutil.copyfile(folder / "00002.png", folder / "00002.jpg")
    (folder / "notes.txt").write_text("not a picture")

    def items(labels: Any, config: FinetuneConfig) -> Any:
        return open_items(encoder, [faces["r0"]], labels, config, tmp_path, what="training")

    found = items(Affect(faces), FinetuneConfig())
    assert found.number.tolist() == [1, 2, 4]
    assert found.folders[0].names.tolist() == [b"00002.jpg", b"00003.png", b"00005.png"]
    (folder / "00005.png").rename(folder / "face.png")
    with pytest.raises(InputError, match=r"face.png: is not named by its frame's number; name crops 00001.jpg"):
        items(Affect(faces), FinetuneConfig())
    unlabelled = items(None, FinetuneConfig(objective="mae"))
    assert [n.decode() for n in unlabelled.folders[0].names][1:] == ["00002.jpg", "00002.png", "00003.png", "face.png"]
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="the training recordings hold no picture"):
        items(None, FinetuneConfig(objective="mae"))


def test_a_video_that_cannot_be_cut_is_left_out(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=5, train=1, validation=1)
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'vit')}")
    (tmp_path / "broken.mp4").write_text("no video")
    broken = Recording("broken", video=tmp_path / "broken.mp4", labels=faces["r0"].labels)
    notes: list[str] = []
    both = [broken, faces["r0"]]
    items = open_items(
        encoder, both, Affect(faces), FinetuneConfig(), tmp_path / "m", what="training", note=notes.append
    )
    assert items.recordings == ("r0",)
    assert notes[0].startswith(f"broken: {tmp_path / 'broken.mp4'}: ")
    assert notes[0].endswith(": left out")


class Drawn(Items):
    """Items whose input is the first number they draw."""

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        drawn = 0.0 if rng is None else float(rng.random())
        return Sample(drawn, np.zeros((1 + item, 1), np.float32), np.ones((1 + item, 1), bool))

    def collate(self, samples: Any) -> dict[str, Any]:
        return {"drawn": list(samples)}


def test_changes_at_random_follow_seed_epoch_and_item() -> None:
    items = Drawn(("a",), np.zeros(3, np.int64), np.arange(3), np.zeros(1))
    first = items.batch([0, 1, 2], (5, 0))
    assert len(set(first.inputs["drawn"])) == 3
    assert items.batch([2, 0], (5, 0)).inputs["drawn"] == [first.inputs["drawn"][i] for i in (2, 0)]
    for other in ((5, 1), (6, 0)):
        assert not set(items.batch([0, 1, 2], other).inputs["drawn"]) & set(first.inputs["drawn"])
    assert items.batch([0, 1]).inputs["drawn"] == [0.0, 0.0]
    assert first.mask[..., 0].tolist() == [[True, False, False], [True, True, False], [True, True, True]]

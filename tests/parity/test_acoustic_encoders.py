"""Sound encoders: every chunk equals transformers' forward on it (1e-5), and chunks cover every row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_encoders as tiny
from affectrace.errors import InputError, WeightsError
from affectrace.features.audio import AudioExtractor, ChunkGrid, chunks
from affectrace.features.audio_networks import AudioNetwork, Wav2Vec2, load_encoder
from affectrace.features.whisper import WhisperLayers
from affectrace.media.audio import Audio, read_audio
from affectrace.weights import hub as sources
from near import assert_near

RATE = 16_000


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.1, 0.3, n).astype(np.float32)


def hubert(folder: Path) -> AudioNetwork:
    return load_encoder("hubert", sources.find(str(tiny.hubert(folder))))


@given(
    n=st.integers(0, 400_000),
    length_s=st.sampled_from([0.1, 0.5, 2.0, 7.3]),
    context_s=st.sampled_from([0.0, 0.2, 1.0]),
    window=st.sampled_from([None, 480_000]),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_kept_once_and_chunks_are_equally_long(
    n: int, length_s: float, context_s: float, window: int | None
) -> None:
    field = 400 if window is None else 320
    cuts = list(chunks(n, ChunkGrid(length_s, context_s), stride=320, field=field, window=window))
    total = max(0, (n - field) // 320 + 1)
    rows = [c.start // 320 + i for c in cuts for i in range(c.keep.start, c.keep.stop)]
    assert rows == list(range(total))
    assert [c.first for c in cuts] == [c.start // 320 + c.keep.start for c in cuts]
    assert len({c.stop - c.start for c in cuts}) <= 1
    for c in cuts:
        assert 0 <= c.start <= c.stop <= n
        assert c.start % 320 == 0
        assert (c.stop - c.start - field) // 320 + 1 >= c.keep.stop
        around = round(context_s * RATE / 320)
        last = c.first + c.keep.stop - c.keep.start
        assert c.keep.start >= min(around, c.first)  # context before
        assert (c.stop - c.start - field) // 320 + 1 - c.keep.stop >= min(around, total - last)  # and after


@pytest.mark.parametrize(("kind", "family"), [("Hubert", "hubert"), ("Wav2Vec2", "wav2vec2")])
@pytest.mark.parametrize(("layer", "normalize"), [(-1, True), (1, False)])
def test_chunks_equal_transformers(tmp_path: Path, kind: str, family: str, layer: int, normalize: bool) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**tiny.SPEECH)).eval()
    model.save_pretrained(tmp_path)
    tiny.processor(tmp_path, feature_extractor_type="Wav2Vec2FeatureExtractor", do_normalize=normalize)
    encoder = load_encoder(family, sources.find(str(tmp_path)), layer)
    grid = ChunkGrid(1.0, 0.3)
    audio = Audio(noise(5 * RATE + 777), RATE, 0.25)
    found = AudioExtractor(family, encoder, grid=grid)(audio)
    processor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    assert found.values.shape == ((5 * RATE + 777 - 400) // 320 + 1, 32)
    assert found.timeline.times[1] == pytest.approx(0.27)
    for cut in chunks(audio.samples.size, grid, stride=320, field=400):
        x = processor(audio.samples[cut.start : cut.stop], sampling_rate=RATE, return_tensors="pt").input_values
        with torch.no_grad():
            expected = model(x, output_hidden_states=True).hidden_states[layer][0, cut.keep].numpy()
        assert_near(found.values[cut.first : cut.first + len(expected)], expected)


@pytest.mark.parametrize("seconds", [0.3, 4.0])  # shorter than a chunk, and a last batch with padding
def test_the_batch_size_changes_nothing(tmp_path: Path, seconds: float) -> None:
    made = AudioExtractor("hubert-base", hubert(tmp_path), grid=ChunkGrid(0.5, 0.1))
    audio = Audio(noise(round(seconds * RATE)), RATE)
    alone = made(audio).values
    made.batch_size = 3
    assert_near(made(audio).values, alone)


def test_gaps_are_invalid_and_other_rates_are_refused(tmp_path: Path) -> None:
    made = AudioExtractor("hubert-base", hubert(tmp_path))
    found = made(Audio(noise(RATE), RATE, gaps=((0.2, 0.4),)))
    assert np.flatnonzero(~found.valid).tolist() == list(range(10, 20))
    with pytest.raises(InputError, match="must have 16000 Hz, got 8000"):
        made(Audio(noise(100), 8000))
    with pytest.raises(InputError, match="no layer 3; use 0 to 2"):
        load_encoder("hubert", sources.find(str(tmp_path)), 3)
    tiny.processor(tmp_path, sampling_rate=8000)
    with pytest.raises(WeightsError, match="trained on 8000 Hz"):
        load_encoder("hubert", sources.find(str(tmp_path)))


def test_grid_and_layer_are_part_of_the_identity(tmp_path: Path) -> None:
    encoder = hubert(tmp_path)
    grids = ChunkGrid(10.0), ChunkGrid(20.0), ChunkGrid(20.0, 1.0)
    ids = [AudioExtractor("hubert-base", encoder, grid=grid).extractor for grid in grids]
    ids.append(AudioExtractor("hubert-base", Wav2Vec2(encoder.network, 1), grid=grids[0]).extractor)
    assert len({i.digest() for i in ids}) == 4
    assert [(i.preprocessing["length_s"], i.preprocessing["context_s"]) for i in ids[:3]] == [(10, 2), (20, 2), (20, 1)]


@pytest.mark.parametrize("layer", [-1, 1])
def test_whisper_equals_transformers(tmp_path: Path, layer: int) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 64}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = transformers.WhisperConfig(**sizes, **decoder, **special, max_source_positions=100)
    whole = transformers.WhisperModel(config).eval()
    whole.save_pretrained(tmp_path)
    encoder = load_encoder("whisper", sources.find(str(tmp_path)), layer)
    grid = ChunkGrid(1.0, 0.5)
    audio = Audio(noise(5 * RATE + 100), RATE)
    found = AudioExtractor("whisper", encoder, grid=grid)(audio)
    assert found.values.shape == (250, 32)
    mel = transformers.WhisperFeatureExtractor(chunk_length=2)
    for cut in chunks(audio.samples.size, grid, stride=320, field=320, window=2 * RATE):
        x = mel(audio.samples[cut.start : cut.stop], sampling_rate=RATE, return_tensors="pt").input_features
        with torch.no_grad():
            expected = whole.encoder(x, output_hidden_states=True).hidden_states[layer]
            expected = (expected if layer == -1 else whole.encoder.layer_norm(expected))[0, cut.keep].numpy()
        assert_near(found.values[cut.first : cut.first + len(expected)], expected)
    with pytest.raises(InputError, match="exceed the network's 2 s"):
        AudioExtractor("whisper", encoder, grid=ChunkGrid(2.0, 0.5))


@pytest.mark.weights
@pytest.mark.real
@pytest.mark.parametrize(("layer", "seconds", "share"), [(2, 31, 2e-5), (-1, 11, 5e-4)])  # two chunks, and one
def test_whisper_without_torch_equals_torch(clips: Path, layer: int, seconds: int, share: float) -> None:
    place = sources.find("package:whisper-tiny.en")
    speech = read_audio(clips / "jfk.flac")
    assert speech is not None
    samples = np.tile(speech.samples, 3)[: seconds * RATE]
    made = [
        AudioExtractor("whisper-tiny.en", encoder)(Audio(samples, RATE, 0.5))
        for encoder in (load_encoder("whisper", place, layer), WhisperLayers(place.folder, layer))
    ]
    torch_made, found = made
    assert found.values.shape == (seconds * 50, 384)
    assert found.timeline == torch_made.timeline
    assert found.extractor == torch_made.extractor
    assert np.abs(found.values).max() > 10
    assert_near(found.values, torch_made.values, share)


@pytest.mark.weights
@pytest.mark.real
def test_whisper_of_a_short_recording_as_it_is(clips: Path) -> None:
    place = sources.find("package:whisper-tiny.en")
    speech = read_audio(clips / "jfk.flac")
    assert speech is not None
    short = Audio(speech.samples[: 3 * RATE + 123], RATE)
    padded, bare = (AudioExtractor("w", WhisperLayers(place.folder, 2, padded=p)) for p in (True, False))
    network = load_encoder("whisper", place).network
    mel = torch.from_numpy(
        transformers.WhisperFeatureExtractor()(short.samples, RATE, padding=False)["input_features"][0]
    )
    with torch.no_grad():  # transformers accepts 30 s only
        x = torch.nn.functional.gelu(network.conv2(torch.nn.functional.gelu(network.conv1(mel[None])))).mT
        x = x + network.embed_positions.weight[: x.shape[1]]
        for layer in network.layers[:2]:
            x = layer(x, None)
        expected = network.layer_norm(x)[0, :150].numpy()
    assert_near(bare(short).values, expected, 2e-5)
    assert padded.extractor.difference(bare.extractor) == "different preprocessing: window_samples 480000 and None"


@pytest.mark.weights
def test_a_layer_that_whisper_lacks(tmp_path: Path) -> None:
    folder = sources.find("package:whisper-tiny.en").folder
    for layer in (0, 5):
        with pytest.raises(InputError, match=f"no layer {layer}; use 1 to 4"):
            WhisperLayers(folder, layer)


@pytest.mark.parametrize("content", [b"", b"\x06\0\0\0" + b"nonsense" * 9])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    for load in (lambda: load_encoder("whisper", sources.find(str(tmp_path))), lambda: WhisperLayers(tmp_path)):
        with pytest.raises(WeightsError, match="is not a Whisper model for CTranslate2"):
            load()

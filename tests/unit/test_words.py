"""The words head: golden values, independence of the batch, what each word does, and the claimed scores."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from affectrace import config as configs
from affectrace.errors import FormatError, InputError, WeightsError
from affectrace.features.text import WordExtractor, token_windows
from affectrace.models.text_head import WordsHead, pool, read_head, shipped_head
from near import assert_near

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = {  # text: valence, arousal of the shipped file
    "What a wonderful day, I am so happy to see you all!": (0.6943, 0.4571),
    "My dog died this morning and I cannot stop crying.": (-0.5539, 0.2591),
    "The meeting is on the second floor.": (0.0188, -0.0668),
}
HAPPY, SAD, PLAIN = GOLDEN
CLAIMED_R = {"valence": 0.753, "arousal": 0.540}  # on the test split, docs/cards/words-emobank.md


@pytest.fixture(scope="module")
def head(minilm: Path) -> WordsHead:
    return WordsHead.load(minilm)


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """training/words_emobank.py as a module: it is a script outside the package."""
    spec = importlib.util.spec_from_file_location("words_emobank", ROOT / "training" / "words_emobank.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.weights
class TestPredict:
    def test_golden_values(self, head: WordsHead) -> None:
        np.testing.assert_allclose(head.predict(list(GOLDEN)), list(GOLDEN.values()), atol=1e-4)

    def test_a_text_by_itself_equals_the_text_among_others(self, head: WordsHead) -> None:
        texts = ["No.", HAPPY, SAD + " " + PLAIN * 5, PLAIN, "Oh my god!"] * 9  # more than one batch, much padding
        alone = np.concatenate([head.predict([text]) for text in texts[:5]])
        assert_near(head.predict(texts), np.tile(alone, (9, 1)))

    def test_a_blank_text_is_refused(self, head: WordsHead) -> None:
        with pytest.raises(InputError, match="text 2 of 2: is empty"):
            head.predict([PLAIN, " \n"])

    def test_of_a_long_text_the_beginning_is_read(self, head: WordsHead) -> None:
        n = head.config.max_tokens - 2
        fits, cut = head.predict(["sea " * n, "sea " * n + "terrible murder"])
        np.testing.assert_array_equal(fits, cut)
        assert abs(head.predict(["sea " * (n - 2) + "terrible murder"])[0, 0] - fits[0]) > 1e-3


class TestHeadFile:
    @pytest.mark.parametrize("config", [None, "", "{", "{}", '{"encoder": "minilm-l6"}'])
    @pytest.mark.parametrize("weight", ["head.weight", "other"])
    def test_a_foreign_or_incomplete_file_is_refused(self, weight: str, config: str | None, tmp_path: Path) -> None:
        metadata = {} if config is None else {"format": "affectrace-words-1", "config": config}
        path = tmp_path / "x.safetensors"
        save_file({"head.bias": torch.zeros(2), weight: torch.zeros(2, 768)}, path, metadata)
        with pytest.raises(FormatError, match="x.safetensors"):
            read_head(path)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(FormatError, match="cannot be read"):
            read_head(path)

    def test_a_missing_encoder_and_another_say_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"cannot be read.*affectrace weights fetch minilm-l6"):
            WordsHead.load(tmp_path)
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"is not the minilm-l6 of this head"):
            WordsHead.load(tmp_path)


def test_pooling_reads_nothing_of_the_padding() -> None:
    h = torch.randn(2, 5, 3)
    m = torch.tensor([[True] * 5, [True, True, False, False, False]])
    h[1, 2:] = torch.nan
    expected = torch.cat([h[1, :2].mean(0), h[1, :2].amax(0)])
    torch.testing.assert_close(pool(h, m)[1], expected)


@pytest.mark.parametrize("size", [4, 7, 254])
@pytest.mark.parametrize("n_tokens", [0, 1, 4, 29, 254, 255, 1000])
def test_windows_read_every_token_once_and_away_from_edges(n_tokens: int, size: int) -> None:
    read = []
    for first, core, last in token_windows(n_tokens, size):
        assert first <= core.start <= core.stop <= last <= n_tokens
        assert last - first <= size
        assert first == 0 or core.start - first >= size // 4
        assert last == n_tokens or last - core.stop >= size // 4
        read += range(core.start, core.stop)
    assert read == list(range(n_tokens))


@pytest.mark.weights
def test_a_word_without_tokens_is_invalid(minilm: Path) -> None:
    encoder = WordExtractor.load("minilm-l6", minilm)
    values, valid = encoder.embed(["hello", "\u200b", "there"])
    assert valid.tolist() == [True, False, True]
    np.testing.assert_allclose(values[[0, 2]], encoder.embed(["hello", "there"])[0], atol=1e-5)


class TestTraining:
    def test_the_shipped_file_is_what_the_defaults_train(self, training: ModuleType) -> None:
        assert read_head(shipped_head())[0].training == configs.to_dict(training.WordsTraining())


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.weights
def test_the_claimed_scores_hold(head: WordsHead, training: ModuleType, real_data: Path) -> None:
    split = training.read_emobank(real_data / "emobank" / "emobank.csv", "test")
    assert len(split.texts) == 1000
    valence, arousal = training._correlations(head.predict(split.texts).astype(float), split.labels)
    assert valence >= CLAIMED_R["valence"] - 0.005
    assert arousal >= CLAIMED_R["arousal"] - 0.005

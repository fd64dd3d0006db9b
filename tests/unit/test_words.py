"""The words head: golden values, independence of the batch, and what each word does."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from affectrace import config as configs
from affectrace.errors import FormatError, InputError, WeightsError
from affectrace.features.text import WordExtractor, token_windows
from affectrace.media.transcript import Transcript, Utterance
from affectrace.models.text_head import GRAPH_FILE, HEAD_FILE, UtteranceExtractor, WordsHead
from near import assert_near

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = {  # text: valence, arousal of the shipped file
    "What a wonderful day, I am so happy to see you all!": (0.7000, 0.4478),
    "My dog died this morning and I cannot stop crying.": (-0.5910, 0.2682),
    "The meeting is on the second floor.": (0.0242, -0.0679),
}
HAPPY, SAD, PLAIN = GOLDEN
SLIPS = ("there plan", "um ", "on on", "is go")  # sounds alike, filler, said twice, lost


@pytest.fixture(scope="module")
def head(minilm: Path) -> WordsHead:
    return WordsHead.load(minilm)


def script(name: str) -> ModuleType:
    """A script in training/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "training" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training() -> ModuleType:
    return script("words_emobank")


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
        metadata = {} if config is None else {"format": "affectrace-words-2", "config": config}
        path = tmp_path / "x.safetensors"
        tensors = {"head.bias": np.zeros(2, np.float32), weight: np.zeros((2, 768), np.float32)}
        save_file(tensors, path, metadata)
        with pytest.raises(FormatError, match="x.safetensors"):
            HEAD_FILE.read(path)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(FormatError, match="cannot be read"):
            HEAD_FILE.read(path)

    def test_a_missing_encoder_and_another_say_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"cannot be read.*affectrace weights fetch minilm-l6"):
            WordsHead.load(tmp_path)
        save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"is not the minilm-l6 of this head"):
            WordsHead.load(tmp_path)


class TestGraph:
    @pytest.mark.weights
    def test_it_equals_the_torch_network(self, head: WordsHead, training: ModuleType, minilm: Path) -> None:
        rng = np.random.default_rng(0)
        rows = [rng.integers(1000, 30000, n).tolist() for n in (3, 256, 2, 40)]
        ids, mask = head.tokens.pad(rows)
        (values,) = head._session.run(None, {"ids": ids, "mask": mask, **head.tensors})
        network = training.load_network(minilm, HEAD_FILE.shipped)
        expected = network(torch.from_numpy(ids), torch.from_numpy(mask)).clamp(-1, 1).numpy()
        np.testing.assert_allclose(values, expected, atol=1e-5, rtol=0)
        padded = np.where(mask, ids, 7)  # padding is never read
        (again,) = head._session.run(None, {"ids": padded, "mask": mask, **head.tensors})
        np.testing.assert_array_equal(again, values)

    def test_the_shipped_file_is_what_the_script_writes(self) -> None:
        assert script("words_graph").words_graph() == GRAPH_FILE.read_bytes()


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


class TestUtterances:
    def test_no_utterance_depends_on_another(self, minilm: Path) -> None:
        extract = UtteranceExtractor()
        one = Utterance.of(1, 2, HAPPY)
        alone = extract(Transcript((one,), "en"))
        after = extract(Transcript((Utterance.of(0, 1, SAD), one, Utterance.of(2, 3, SAD, ())), "en"))
        assert alone.extractor.columns == ("valence", "arousal", "confidence", "valence_sd", "arousal_sd")
        assert_near(after.values[1], alone.values[0])

    @pytest.mark.parametrize(
        ("text", "form", "length"),
        [("Yes.", "written", 0), ("yes", "recognized", 0), ("we are all here now", "recognized", 1),
         ("word, " * 20, "written", 2), ("word " * 21, "recognized", 3)],
    )  # fmt: skip
    def test_the_residual_is_that_of_form_and_length(self, text: str, form: str, length: int) -> None:
        residual = HEAD_FILE.read(HEAD_FILE.shipped)[0].residual
        assert residual.of(text) == getattr(residual, form)[length]


class TestTraining:
    def test_recognized_text_has_no_case_and_punctuation_and_some_slips(self, training: ModuleType) -> None:
        text, rng = "Well, their plan -- it's Katherine's -- is to go on and on!", np.random.default_rng(0)
        found = {training.as_recognized(text, rng) for _ in range(300)}
        assert all(re.fullmatch(r"[a-z' ]+", t) for t in found)
        assert training.unpunctuated(text) in found
        assert all(any(slip in t for t in found) for slip in SLIPS)
        assert training.as_recognized("...", rng) == "..."

    def test_documents_stay_whole_in_folds(self, training: ModuleType) -> None:
        documents = ["a"] * 50 + ["b"] * 30 + [f"headline {i}" for i in range(70)]
        fold = training.folds(documents, 3)
        assert [len(set(fold[:50])), len(set(fold[50:80]))] == [1, 1]
        assert np.bincount(fold).tolist() == [50, 50, 50]

    def test_the_shipped_file_is_what_the_defaults_train(self, training: ModuleType) -> None:
        assert HEAD_FILE.read(HEAD_FILE.shipped)[0].training == configs.to_dict(training.WordsTraining())

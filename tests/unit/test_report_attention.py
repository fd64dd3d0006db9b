"""Attention maps in a report: the data that the page draws."""

from __future__ import annotations

import base64

import numpy as np

from affectrace.inference.attention_maps import AttentionMaps, AttentionWindow
from affectrace.media.transcript import Word
from affectrace.report import report_page
from affectrace.report.payload import BINS, MAX_WINDOWS, NO_ATTENTION, WITH_HEADS, attention_data
from report_examples import example_trace


def maps_of(
    n: int = 4, *, windows: int = 1, words: tuple[Word, ...] = (), valid: np.ndarray | None = None
) -> AttentionMaps:
    starts = np.arange(n) / 10
    ok = np.ones(n, bool) if valid is None else valid
    weights = np.zeros((2, n, n), np.float32)
    weights[0, :, 0] = weights[1, :, 1 % n] = 1
    clock = dict.fromkeys(("visual", "text"), starts)
    one = AttentionWindow(
        0.0, n / 10, clock, {m: x + 0.1 for m, x in clock.items()}, {"visual": ok, "text": np.ones(n, bool)},
        {("visual", "text"): weights, ("text", "visual"): weights},
    )  # fmt: skip
    return AttentionMaps("interview", "maven", (one,) * windows, words)


def layers(data: dict, path: str = "visual.text") -> list[np.ndarray]:
    window = data["windows"][0]
    m, n = (len(window["axes"][name]["starts"]) for name in path.split("."))
    given = window["maps"][path]
    raw = [np.frombuffer(base64.b64decode(x), np.uint8).reshape(m, n) for x in given["layers"]]
    return [np.where(x == NO_ATTENTION, np.nan, x / (NO_ATTENTION - 1) * given["scale"]) for x in raw]


def test_maps_are_times_as_much_as_evenly_mean_first_then_heads() -> None:
    mean, first, second = layers(attention_data(maps_of()))
    np.testing.assert_allclose(mean[:, 0], 2, atol=0.02)
    np.testing.assert_allclose(first[:, 0], 4, atol=0.02)
    np.testing.assert_allclose(second[:, 1], 4, atol=0.02)
    assert not mean[:, 2:].any()


def test_rows_that_are_not_valid_are_missing() -> None:
    (mean, *_) = layers(attention_data(maps_of(valid=np.array([True, False, True, True]))))
    assert np.isnan(mean[1]).all()
    assert np.isfinite(mean[[0, 2, 3]]).all()


def test_long_windows_are_binned_and_many_windows_keep_the_mean_alone() -> None:
    data = attention_data(maps_of(10 * BINS + 7))
    axis = data["windows"][0]["axes"]["visual"]
    assert len(axis["starts"]) == len(axis["ends"]) <= BINS
    assert axis["ends"][:-1] == axis["starts"][1:]
    assert axis["ends"][-1] == round((10 * BINS + 7) / 10, 3)
    (mean, *_) = layers(data)
    assert abs(mean.mean() - 1) < 0.05
    many = attention_data(maps_of(windows=WITH_HEADS + 1))
    assert len(many["windows"][0]["maps"]["visual.text"]["layers"]) == 1
    too_many = maps_of(windows=MAX_WINDOWS + 3)
    assert len(attention_data(too_many)["windows"]) == MAX_WINDOWS
    assert "3 more are in the file" in report_page([example_trace()], attention=too_many)


def test_the_card_lists_words_escaped_and_says_what_attention_is_not() -> None:
    words = (Word(0.0, 0.1, "<b>so</b>"), Word(0.1, 0.4, "glad"))
    page = report_page([example_trace()], attention=maps_of(words=words))
    assert "Attention is not explanation" in page
    assert "&lt;b&gt;so&lt;/b&gt;" in page
    assert "<b>so" not in page
    assert "face → words" in page

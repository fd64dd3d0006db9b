from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest

from affectrace import config
from affectrace.errors import AffectraceError, ConfigError, InputError, OutputError, UnknownNameError
from affectrace.recording import Recording


@dataclass(frozen=True)
class Inner:
    rate: Fraction = Fraction(30000, 1001)
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    size: int = 3
    ratio: float = 0.5
    on: bool = True
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError("size must be at least 1")


def test_round_trip(tmp_path: Path) -> None:
    value = Outer(Inner(Fraction(1, 3), ("x", "y")), 7, 0.1, False, Path("a/b"))
    config.save(value, tmp_path / "c.json")
    assert config.load(Outer, tmp_path / "c.json") == value


def test_integers_are_floats_where_floats_are_asked() -> None:
    assert config.from_dict(Outer, {"ratio": 1}).ratio == 1.0


def test_all_mistakes_come_together_with_their_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Outer, {"sise": 1, "ratio": "much", "inner": {"rate": "1/0"}, "on": 1}, where="c.json")
    text = str(caught.value)
    for part in ("c.json", "unknown field sise", "Outer.ratio", "expected float, got 'much'", "Outer.inner.rate", "on"):
        assert part in text


def test_refusals_of_the_class_are_config_mistakes() -> None:
    with pytest.raises(ConfigError, match="size must be at least 1"):
        config.from_dict(Outer, {"size": 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
        (None, "cannot be read"),
        ("[]", "c.json"),
        ("3", "c.json"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        config.load(Outer, path)


def test_atomic_write_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.txt"
    config.write_atomic(target, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        config.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_error_is_one_line_and_survives_processes() -> None:
    error = InputError("is\nempty", where=Path("a.mp4"), hint="give another")
    assert str(error) == "a.mp4: is empty; give another"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (InputError, str(error))
    assert isinstance(error, AffectraceError)


@pytest.mark.parametrize(
    ("name", "hint"), [("zeroshot", "did you mean 'zero-shot'?"), ("qqq", "known: mamba-va, zero-shot")]
)
def test_closest_name_is_suggested(name: str, hint: str) -> None:
    assert hint in str(UnknownNameError.of("model", name, ["zero-shot", "mamba-va"]))


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a\\b"])
def test_recording_ids_are_names(bad: str) -> None:
    with pytest.raises(InputError, match="path separators"):
        Recording(bad)


def test_recording_keeps_columns_and_pickles() -> None:
    r = Recording("a", video=Path("a.mp4"), columns={"condition": "x"})
    assert pickle.loads(pickle.dumps(r)) == r
    with pytest.raises(InputError, match="split must be one of"):
        Recording("a", split="dev")

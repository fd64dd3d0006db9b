from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Gt

from affectrace import config
from affectrace.errors import AffectraceError, ConfigError, InputError
from affectrace.recording import Recording


@dataclass(frozen=True)
class Inner(config.Config):
    rate: Annotated[Fraction, Gt(0)] | None = Fraction(30000, 1001)
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Outer(config.Config):
    inner: Inner = field(default_factory=Inner)
    size: config.Count = 3
    ratio: float = 0.5
    on: bool = True
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.ratio > self.size:
            raise InputError("ratio: at most size")


def test_round_trip() -> None:
    value = Outer(Inner(Fraction(1, 3), ("x", "y")), 7, 0.1, False, Path("a/b"))
    plain = json.loads(json.dumps(config.to_dict(value)))
    assert config.from_dict(Outer, plain) == config.checked(value) == value


@pytest.mark.parametrize(("given", "rate"), [("29.97", Fraction(2997, 100)), (25, Fraction(25)), (None, None)])
def test_plain_values_become_typed_ones(given: object, rate: Fraction | None) -> None:
    made = config.from_dict(Outer, {"ratio": 1, "path": "a/b", "inner": {"rate": given, "names": ["x"]}})
    assert made == Outer(Inner(rate, ("x",)), ratio=1.0, path=Path("a/b"))


@pytest.mark.parametrize(
    ("values", "places"),
    [
        (
            {"sise": 1, "ratio": "much", "inner": {"rate": "1/0", "n": 1}, "on": 1, "size": "3"},
            ["c.json: ", "sise: unknown field (did you mean 'size'?)", "ratio: ", "got 'much'", "inner.rate: ", "on: "],
        ),
        ({"size": 0, "inner": {"rate": -1, "names": "abc"}}, ["size: ", "inner.rate: ", "inner.names: "]),
        ({"ratio": float("nan"), "size": True, "path": 3}, ["ratio: ", "size: ", "path: "]),
        ({"ratio": 9}, ["at most size"]),
        ([1], ["c.json: "]),
    ],
)
def test_all_mistakes_come_together_with_their_paths(values: object, places: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Outer, values, where="c.json")
    assert [p for p in places if p not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "is not JSON"),
        (None, "cannot be read"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"c.json: {message}"):
        config.read_json(path)


def test_a_folder_survives_a_kill_while_it_is_replaced(tmp_path: Path) -> None:
    aside = tmp_path / ".best.old"  # where it stands for a moment
    aside.mkdir()
    (aside / "weights").write_text("kept")
    with pytest.raises(KeyboardInterrupt), config.atomic_folder(tmp_path / "best"):
        raise KeyboardInterrupt
    assert (tmp_path / "best" / "weights").read_text() == "kept"


def test_error_is_one_line_and_survives_processes() -> None:
    error = InputError("is\nempty", where=Path("a.mp4"), hint="give another")
    assert str(error) == "a.mp4: is empty; give another"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (InputError, str(error))
    assert isinstance(error, AffectraceError)


@pytest.mark.parametrize("values", [{"id": ""}, {"id": ".."}, {"id": "a/b"}, {"id": "a\\b"}, {"split": "dev"}])
def test_recordings_have_a_name_for_a_file_and_a_known_split(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Recording(**{"id": "a", **values})

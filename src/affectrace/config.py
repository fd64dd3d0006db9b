"""Configurations: frozen dataclasses, checked as a whole where they come in, and their JSON; files written whole.

A configuration is `@dataclass(frozen=True) class TrainConfig(Config)` whose fields say what they accept
(`epochs: Annotated[int, Ge(1)]`); `__post_init__` keeps what concerns two fields. pydantic reads and checks them: in
`from_dict` and `read` what comes from a file, in `checked` what was built in Python. It is loaded on first use only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, TypeVar

from annotated_types import Ge, Gt, Interval

from affectrace.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
_HUGE = re.compile(r"\s*[+-]?[\d_.]+[eE][+-]?\d{3,}\s*")


def is_huge(text: object) -> bool:
    """Whether text is a number like 1e999999999, which takes a gigabyte of digits as a fraction."""
    return isinstance(text, str) and _HUGE.fullmatch(text) is not None


class _Exact:
    """A fraction from a number or its text, but not from such a one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_exact, handler(source))


def _exact(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    try:
        if not is_huge(value):
            return Fraction(repr(value) if isinstance(value, float) else value)  # 29.97 without quotes: its decimals
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    raise ValueError(f"expected a number such as 25, 29.97 or 30000/1001, got {value!r}")


Exact = Annotated[Fraction, _Exact()]


class Config:
    """Base of configurations: unknown fields, NaN and infinity are refused."""

    __pydantic_config__: ClassVar[Any] = {
        "extra": "forbid",
        "revalidate_instances": "always",
        "allow_inf_nan": False,
    }


def from_dict(kind: type[T], values: object, *, where: str | Path | None = None) -> T:
    """Build a `kind` from plain values, as JSON has them (lists become tuples, "30000/1001" a Fraction, text a Path).

    Raises:
        ConfigError: unknown fields, wrong types, values refused by `kind`; every mistake with its path.
    """
    return _valid(kind, where, lambda: _adapter(kind).validate_json(json.dumps(values, default=_plain), strict=True))


def checked(config: T) -> T:
    """The same for an object that was built in Python: every field of it and of those in it (raises ConfigError)."""
    kind = type(config)
    return _valid(kind, kind.__name__, lambda: _adapter(kind).validate_python(config, strict=True))


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as plain JSON values."""
    values: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json", warnings=False)
    return values


def mistakes(config: Any) -> list[tuple[tuple[str, ...], str]]:
    """(Path, what is wrong) of every mistake in an object that was built in Python."""
    return _tried(type(config), lambda: _adapter(type(config)).validate_python(config, strict=True))[1]


def _tried(kind: type, check: Callable[[], T]) -> tuple[T | None, list[tuple[tuple[str, ...], str]]]:
    from pydantic import ValidationError

    try:
        return check(), []
    except ValidationError as error:
        return None, [_told(kind, found) for found in error.errors()]


def _valid(kind: type[T], where: str | Path | None, check: Callable[[], T]) -> T:
    made, wrong = _tried(kind, check)
    if wrong:
        raise ConfigError("; ".join(f"{place(at)}: {what}" if at else what for at, what in wrong), where=where)
    return typing.cast(T, made)


def place(path: Sequence[str]) -> str:
    """A path of `mistakes` as text: window.size, recordings[0].id."""
    return ".".join(path).replace(".[", "[")


def _told(kind: type, found: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    at = tuple(f"[{part}]" if isinstance(part, int) else part for part in found["loc"])
    if found["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(at[-1], fields_at(kind, at[:-1]), n=1, cutoff=0.5)
        return at, "unknown field" + (f" (did you mean '{close[0]}'?)" if close else "")
    given = found["input"]
    short = isinstance(given, str | int | float | None) and found["type"] != "value_error" and len(repr(given)) < 80
    return at, found["msg"].removeprefix("Value error, ") + (f", got {given!r}" if short else "")


def fields_at(kind: Any, path: Sequence[str]) -> dict[str, Any]:
    """Name -> type of the fields of the dataclass that lies at `path` in a `kind`; none where no dataclass does."""
    while typing.get_origin(kind) is not None or not isinstance(kind, type):  # Annotated, X | None
        arguments = typing.get_args(kind)
        if not arguments:
            return {}
        kind = arguments[0]
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return found if not path else fields_at(found.get(path[0]), path[1:])


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
        from pydantic import TypeAdapter

        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _plain(value: object) -> object:
    if isinstance(value, Fraction | os.PathLike):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise ConfigError(f"{type(value).__name__} is not a value of a configuration")


# ---- files


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ConfigError: unreadable, or not JSON (with line and column).
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
    except (ValueError, RecursionError) as error:  # of syntax, encoding, thousands of digits or brackets
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"is not JSON ({why})", where=path, hint="mend the file") from None


def read(kind: type[T], path: Path) -> T:
    """Read a config of type `kind` from a JSON file (raises ConfigError)."""
    return from_dict(kind, read_json(path), where=path)


def write(config: Any, path: Path) -> None:
    """Write a config as indented JSON, atomically."""
    write_atomic(path, json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file under a temporary name beside it, flush, rename: never half a file.

    Raises:
        OutputError: the folder is missing and cannot be made, is not writable, or is full.
    """
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece under a temporary name; it gets its own after the block, and goes after an error.

    Raises:
        OutputError: as `write_atomic`.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", where=path, hint="choose a writable folder with --out"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it replaces `path` after the block, and goes after an error.

    Raises:
        OutputError: cannot be written; an earlier folder is kept.
    """
    part, old = (path.with_name(f".{path.name}.{what}") for what in ("part", "old"))
    try:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", where=path, hint="choose a writable folder with --out"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


LOCK_FILE = ".affectrace.lock"


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """One process at a time writes to a folder, which is made where it is not there. It holds a lock file afterwards;
    where nothing was written the folder is as it was, or gone again.

    doing: what the other one does, for the message: "another {doing} is writing here".

    Raises:
        OutputError: another process is writing there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = {p.name for p in folder.iterdir()}
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(timeout=0.5)
    except Timeout:
        raise OutputError(
            f"another {doing} is writing here", where=folder, hint="wait for it, or use another --out"
        ) from None
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", where=folder, hint="choose a writable folder with --out"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody else wrote into one of them
            if {p.name for p in folder.iterdir()} - before == {LOCK_FILE}:
                (folder / LOCK_FILE).unlink()
                for path in new:
                    path.rmdir()
        lock.release()

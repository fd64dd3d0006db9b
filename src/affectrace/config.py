"""Configuration dataclasses, their JSON and pydantic validation; atomic files and folder locks.

A configuration is `@dataclass(frozen=True) class TrainConfig(Config)` whose fields state what they accept
(`epochs: Annotated[int, Ge(1)]`); `__post_init__` checks what concerns two fields. pydantic is loaded on first use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import re
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, TypeVar

from annotated_types import Ge, Gt, Interval

from affectrace.errors import AffectraceError, ConfigError, OutputError

T = TypeVar("T")
Count = Annotated[int, Ge(1)]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Mistakes = list[tuple[tuple[str, ...], str]]
"""(Path of a field, what is wrong with it)."""
_HUGE = re.compile(r"\s*[+-]?[\d_.]+[eE][+-]?\d{3,}\s*")


def is_huge(text: str) -> bool:
    """Whether text is a number like 1e999999999, which takes a gigabyte of digits as a fraction."""
    return _HUGE.fullmatch(text) is not None


class _Exact:
    """Makes pydantic read a Fraction from a number or its text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_exact, handler(source))


def _exact(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    if not (isinstance(value, str) and is_huge(value)):
        with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
            return Fraction(repr(value) if isinstance(value, float) else value)  # 29.97, not its binary value
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
        ConfigError: every unknown field, wrong type and refused value, with its path.
    """
    plain = json.dumps(values, default=_plain)
    return _accepted(_validated(kind, lambda: _adapter(kind).validate_json(plain, strict=True)), where)


def checked(config: T) -> T:
    """The same check for an object built in Python, nested configurations included (raises ConfigError)."""
    kind = type(config)
    return _accepted(_validated(kind, lambda: _adapter(kind).validate_python(config, strict=True)), kind.__name__)


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as plain JSON values."""
    values: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json", warnings=False)
    return values


def validated(kind: type[T], values: object) -> tuple[T | None, Mistakes]:
    """A `kind` built from nested dicts of Python values (text also for numbers), or None and all mistakes."""
    return _validated(kind, lambda: _adapter(kind).validate_python(values))


def fields_of(kind: Any) -> dict[str, Any]:
    """Field -> type of a dataclass, also within Annotated or Optional; {} of any other type."""
    for found in (kind, *typing.get_args(kind)):
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            hints = typing.get_type_hints(found, include_extras=True)
            return {field.name: hints[field.name] for field in dataclasses.fields(found)}
    return {}


def _accepted(found: tuple[T | None, Mistakes], where: str | Path | None) -> T:
    made, mistakes = found
    if mistakes:
        places = (".".join(path).replace(".[", "[") for path, _ in mistakes)
        lines = [f"{place}: {what}" if place else what for place, (_, what) in zip(places, mistakes, strict=True)]
        raise ConfigError("; ".join(lines), where=where)
    return typing.cast(T, made)


def _validated(kind: type[T], check: Callable[[], T]) -> tuple[T | None, Mistakes]:
    from pydantic import ValidationError

    try:
        return check(), []
    except ValidationError as error:
        return None, [_described(kind, found) for found in error.errors()]
    except UnicodeEncodeError:  # of a message, which pydantic encodes
        return None, [((), "a text has half a character (a lone surrogate)")]


def _described(kind: Any, found: Any) -> tuple[tuple[str, ...], str]:
    path = tuple(f"[{part}]" if isinstance(part, int) else part for part in found["loc"])
    if found["type"] == "unexpected_keyword_argument":
        for part in path[:-1]:
            kind = kind if part.startswith("[") else fields_of(kind).get(part)
        known = fields_of(kind)
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        there = f" (there are {', '.join(known)})" if known else ""
        return path, "unknown field" + (f" (did you mean '{close[0]}'?)" if close else there)
    if found["type"] in ("missing", "missing_argument"):
        return path, "is required"
    given, error = found["input"], found.get("ctx", {}).get("error")
    if isinstance(error, AffectraceError) and error.where:  # of a __post_init__
        return (*path, error.where), str(error).removeprefix(f"{error.where}: ")
    shown = isinstance(given, str | int | float | None) and found["type"] != "value_error" and len(repr(given)) < 80
    return path, found["msg"].removeprefix("Value error, ") + (f", got {given!r}" if shown else "")


def _new_adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


_adapter: Callable[[Any], Any] = functools.cache(_new_adapter)


def _plain(value: object) -> object:
    if isinstance(value, Fraction | os.PathLike):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise ConfigError(f"{type(value).__name__} is not a value of a configuration")


# ---- files


def read_json(path: Path) -> Any:
    """Parse a JSON file (raises ConfigError: unreadable, or not JSON)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
    except (ValueError, RecursionError) as error:  # syntax, encoding, thousands of digits or brackets
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"is not JSON ({why})", where=path, hint="correct the file") from None


def read(kind: type[T], path: Path) -> T:
    """Read a `kind` from a JSON file (raises ConfigError)."""
    return from_dict(kind, read_json(path), where=path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file under a temporary name beside it, flush, rename (raises OutputError)."""
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that is renamed to it after the block, and removed after an error.

    Raises:
        OutputError: the folder cannot be made or written, or is full.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
        publish_file(temporary, path)
    except OSError as error:
        raise _not_writable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def publish_file(temporary: Path, path: Path) -> None:
    """Rename a finished temporary file to `path`, with the permissions of an ordinary new file."""
    temporary.chmod(_file_mode())
    temporary.replace(path)


@functools.cache
def _file_mode() -> int:
    umask = os.umask(0o077)  # POSIX reads it only by setting it; once, and never open to others in between
    os.umask(umask)
    return 0o666 & ~umask


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` after the block, and is removed after an error (raises OutputError)."""
    part, old = (path.with_name(f".{path.name}.{what}") for what in ("part", "old"))
    try:
        if old.exists() and not path.exists():  # killed between the two renames below
            old.rename(path)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _not_writable(path, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def staged_folder(path: Path, parts: Sequence[str]) -> Iterator[Path]:
    """A temporary folder whose `parts` replace those of `path` after the block; an error leaves `path` as it was.

    parts: relative paths of files and folders. A part that was not made is removed from `path`. Raises OutputError.
    """
    if not path.exists() or not any(path.iterdir()):
        with atomic_folder(path) as part:
            yield part
        return
    part, old, moved = (
        path.with_name(f".{path.name}.part"),
        path.with_name(f".{path.name}.old"),
        list[tuple[Path, Path]](),
    )
    try:
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir()
        yield part
        for relative in parts:
            for source, target in ((path / relative, old / relative), (part / relative, path / relative)):
                if source.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.rename(target)
                    moved.append((source, target))
        moved.clear()
    except OSError as error:
        raise _not_writable(path, error) from None
    finally:
        for source, target in reversed(moved):
            target.rename(source)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _not_writable(path: Path, error: OSError) -> OutputError:
    what = f"cannot be written ({error.strerror or error})"
    return OutputError(what, where=path, hint="choose a writable folder with --out")


LOCK_FILE = ".affectrace.lock"


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Locks a folder, made if missing, for one process. If nothing is written to it, it is left as it was, or removed.

    doing: work of the other process in the message "another {doing} is writing here".

    Raises:
        OutputError: another process holds the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    new = [p for p in (folder, *folder.parents) if not p.exists()]
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = {p.name for p in folder.iterdir()}
        lock.acquire(timeout=0.5)
    except Timeout:
        what = f"another {doing} is writing here"
        raise OutputError(what, where=folder, hint="wait for it, or use another --out") from None
    except OSError as error:
        raise _not_writable(folder, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # another process wrote into one of the new folders
            if {p.name for p in folder.iterdir()} - before == {LOCK_FILE}:
                (folder / LOCK_FILE).unlink()
                for path in new:
                    path.rmdir()
        lock.release()

"""Frozen dataclasses <-> JSON, strict: unknown keys and wrong types are refused, all mistakes together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn
from cattrs.v import transform_error

from affectrace.errors import ConfigError, OutputError

T = TypeVar("T")
_NUMBER = re.compile(r"\s*[+-]?\d{0,30}(\.\d{0,30})?([eE][+-]?\d{1,2}|/\d{1,30})?\s*")


def _converter() -> cattrs.Converter:
    conv = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

    def strict(kind: type, *accepted: type) -> None:
        def hook(value: Any, _: Any) -> Any:
            if (isinstance(value, bool) and kind is not bool) or not isinstance(value, accepted or (kind,)):
                raise TypeError(f"expected {kind.__name__}, got {value!r}")
            return kind(value)

        conv.register_structure_hook(kind, hook)

    strict(int)
    strict(float, int, float)
    strict(str)
    strict(bool)
    conv.register_structure_hook(Path, lambda v, _: Path(v))
    conv.register_unstructure_hook(Path, str)

    def fraction(value: Any, _: Any) -> Fraction:
        try:
            if isinstance(value, str) and not _NUMBER.fullmatch(value):  # 1e999999999 is a gigabyte of digits
                raise ValueError
            return Fraction(value)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError):
            raise ValueError(f"expected a number such as 25, 29.97 or 30000/1001, got {value!r}") from None

    conv.register_structure_hook(Fraction, fraction)
    conv.register_unstructure_hook(Fraction, str)
    conv.register_structure_hook_factory(
        dataclasses.is_dataclass,
        lambda cls: make_dict_structure_fn(cls, conv, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True),
    )
    return conv


_CONVERTER = _converter()


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as plain JSON values."""
    return _CONVERTER.unstructure(config)


def from_dict(kind: type[T], values: object, *, where: str | Path | None = None) -> T:
    """Build a `kind` from plain values.

    Raises:
        ConfigError: unknown keys, wrong types or values refused by `kind`; every mistake with its path.
    """
    try:
        return _CONVERTER.structure(values, kind)
    except Exception as error:  # cattrs raises exception groups, ours pass through in them
        mistakes = transform_error(error, path=kind.__name__, format_exception=_format_exception)
        raise ConfigError(
            "; ".join(mistakes), where=where, hint="see `affectrace COMMAND --help` for the fields"
        ) from None


def _format_exception(error: BaseException, kind: type | None) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, KeyError):
        return f"required field {error} is missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown field {', '.join(sorted(error.extra_fields))}"
    return str(error) or type(error).__name__


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
        raise ConfigError(f"is not JSON ({error})", where=path, hint="mend the file") from None


def load(kind: type[T], path: Path) -> T:
    """Read a config of type `kind` from a JSON file (raises ConfigError)."""
    return from_dict(kind, read_json(path), where=path)


def save(config: Any, path: Path) -> None:
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
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """`atomic_file` for what writes files by their names.

    Raises:
        OutputError: as `write_atomic`.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
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


LOCK_FILE = ".affectrace.lock"


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """One process at a time writes to a folder, which is made where it is not there. It holds a lock file afterwards,
    but where nothing was written the new folder is gone again.

    doing: what the other one does, for the message: "another {doing} is writing here".

    Raises:
        OutputError: another process is writing there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
            if new and [p.name for p in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                for path in new:
                    path.rmdir()
        lock.release()

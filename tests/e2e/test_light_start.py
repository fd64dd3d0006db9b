"""Importing the package and asking for help load nothing heavy and touch no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import made_media as made

HEAVY = ("torch", "transformers", "onnxruntime", "av", "pandas", "plotly", "faster_whisper", "socket")


PROBE = f"""
import contextlib, io, sys
import affectrace

def check(argv, heavy):
    from affectrace.cli import main
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(argv) == 0
    assert not (loaded := heavy & set(sys.modules)), (argv, loaded)
    return out.getvalue()

heavy = set({HEAVY!r})
assert not (loaded := heavy & set(sys.modules)), loaded
check(["--help"], heavy)
check(["--version"], heavy)
from affectrace.cli import COMMANDS
for name, command in COMMANDS.items():
    page = check([name, "--help"], heavy - {{"socket"}} | {{"numpy", "pydantic"}})
    for part in (f"affectrace {{name}} ", "--quiet", command.example.split()[-1]):
        assert part in page, (name, part)
"""


def test_importing_and_help_load_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_faces_without_a_trained_model_load_no_torch(tmp_path: Path) -> None:
    video = made.example_excerpt(tmp_path / "a.mp4", 0, 1)
    args = ["predict", str(video), "--modalities", "face", "--fps", "1", "--quiet", "--out", str(tmp_path / "o")]
    code = f"import sys; from affectrace.cli import main; assert main({args!r}) == 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_public_names_are_few_and_all_there() -> None:
    import affectrace

    assert len(affectrace.__all__) <= 14
    assert all(getattr(affectrace, name) is not None for name in affectrace.__all__)


def test_unknown_attribute() -> None:
    import affectrace

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = affectrace.nothing

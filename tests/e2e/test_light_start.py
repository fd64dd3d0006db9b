"""Importing the package and asking for help load nothing heavy and touch no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from affectrace.cli import COMMANDS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "example.mp4"
HEAVY = ("torch", "transformers", "onnxruntime", "av", "pandas", "plotly", "faster_whisper", "ai_edge_litert", "socket")


@pytest.mark.parametrize(
    "code",
    [
        "import affectrace",
        "from affectrace.cli import main; assert main(['--help']) == 0",
        "from affectrace.cli import main; assert main(['--version']) == 0",
    ],
)
def test_loads_nothing_heavy(code: str) -> None:
    check = f"import sys; {code}; loaded = set({HEAVY!r}) & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_neither_numpy_nor_torch(command: str) -> None:
    heavy = ("numpy", "pydantic", *HEAVY[:-1])
    code = (
        "import sys; from affectrace.cli import main\n"
        f"assert main([{command!r}, '--help']) == 0\n"
        f"loaded = set({heavy!r}) & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in (f"affectrace {command} ", "--quiet", COMMANDS[command].example.split()[-1]):
        assert part in done.stdout


@pytest.mark.weights
def test_faces_without_a_trained_model_load_no_torch(tmp_path: Path) -> None:
    args = ["predict", str(EXAMPLE), "--modalities", "face", "--fps", "1", "--quiet", "--out", str(tmp_path / "o")]
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

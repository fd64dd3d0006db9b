"""Importing the package and asking for help load nothing heavy and touch no network."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


LIGHT = ("predict", "report", "overlay", "summary", "export", "weights", "doctor", "synth", "import", "extract")
LIGHT += ("evaluate", "compare", "submit", "attention", "convert", "push")  # train, crossval, finetune show torch's own


@pytest.mark.parametrize("command", LIGHT)
def test_help_of_commands_loads_no_torch(command: str) -> None:
    code = (
        "import sys\nfrom affectrace.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit as e: assert e.code in (0, None), e.code\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"affectrace {command}" in done.stdout
    assert "--quiet" in done.stdout


def test_public_names_are_few_and_all_there() -> None:
    import affectrace

    assert len(affectrace.__all__) <= 14
    assert all(getattr(affectrace, name) is not None for name in affectrace.__all__)


def test_unknown_attribute() -> None:
    import affectrace

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = affectrace.nothing

"""A light start and a light base: what help and the default `predict` load, and what is said without the extras."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import made_media as made
from affectrace.errors import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
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


def test_predicting_faces_loads_no_speech_recognition() -> None:
    heavy = {"faster_whisper", "ctranslate2", "tokenizers", "torch"}
    code = f"""
import sys
import affectrace.cli.predict, affectrace.inference.onnx_model, affectrace.inference.ensemble
affectrace.load()
assert not (loaded := {heavy!r} & set(sys.modules)), loaded
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


# Runs what `sys.argv` names in an installation of the base alone.
BASE_ONLY = f"""
import sys
sys.modules.update(dict.fromkeys({[*EXTRAS, "h5py", "skimage", "tensorboard"]!r}))  # None: "No module named ..."
"""
RUN = (
    BASE_ONLY
    + """
import json
from affectrace.cli import main
print([main(argv) for argv in json.loads(sys.argv[1])])
"""
)
WITHOUT_EXTRAS = {  # command line -> what its error names
    "train gru -d data -f visual=fer -o run": '"affectrace[train]"',
    "extract a.mp4 -f minilm-l6 -o features": '"affectrace[train]"',
    "predict a.mp4 --model run/best": "a trained model needs torch, which is not installed",
    "predict a.mp4 --format parquet": 'Parquet needs pyarrow, which is not installed; pip install "affectrace[data]"',
    "export run/best --to onnx -o model.onnx": '"affectrace[train]"',
    "synth made --recordings 2": 'synth needs scipy, which is not installed; pip install "affectrace[data]"',
}


@pytest.mark.weights
def test_default_predict_needs_the_base_alone(tmp_path: Path) -> None:
    video = made.example_excerpt(tmp_path / "a.mp4", 0, 3)
    (tmp_path / "a.srt").write_text("1\n00:00:00,500 --> 00:00:02,500\nWhat a wonderful day!\n", encoding="utf-8")
    argv = ["predict", str(video), "--report", "--overlay", "--quiet", "--out", str(tmp_path / "out")]
    lines = [argv, ["report", str(tmp_path / "out" / "a.csv"), "--out", str(tmp_path / "again.html"), "--quiet"]]
    given = [*argv[:-1], str(tmp_path / "given"), "--transcript", str(tmp_path / "a.srt")]
    done = run(RUN, json.dumps([*lines, given]))
    assert done.stdout.endswith("[0, 0, 0]\n"), done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"a.csv", "a.html", "a.overlay.mp4"}
    spans = json.loads((tmp_path / "given" / "a.csv.json").read_text())["spans"]
    assert any(span.get("valence", 0) > 0.3 for span in spans)  # the words head ran


@pytest.mark.weights
def test_extract_needs_the_base_alone_where_no_encoder_is_in_torch(tmp_path: Path) -> None:
    video, names = made.example_excerpt(tmp_path / "a.mp4", 0, 1), "fer,mesh-geometry,prosody,whisper-tiny.en-layer2"
    done = run(RUN, json.dumps([["extract", str(video), "-f", names, "-o", str(tmp_path / "features"), "--quiet"]]))
    assert done.stdout.endswith("[0]\n"), done.stderr
    assert {p.parent.name for p in tmp_path.glob("features/*/a.safetensors")} == set(names.split(","))


def test_a_missing_extra_is_named_in_one_line(tmp_path: Path) -> None:
    video = made.example_excerpt(tmp_path / "a.mp4", 0, 1)
    lines = [[str(video) if word == "a.mp4" else word for word in line.split()] for line in WITHOUT_EXTRAS]
    done = run(RUN, json.dumps(lines), cwd=tmp_path)
    assert done.stdout.endswith(f"{[2] * len(lines)}\n"), done.stdout + done.stderr
    for line, message in zip(done.stderr.splitlines(), WITHOUT_EXTRAS.values(), strict=True):
        assert line.startswith("affectrace: ")
        assert message in line


@pytest.mark.parametrize(
    "code, extra",
    [
        ("affectrace.load('run/best')", "train"),
        ("affectrace.Trace.plot(None)", "plot"),
        ("from affectrace.train import train", "train"),
    ],
)
def test_the_library_names_a_missing_extra_too(code: str, extra: str) -> None:
    done = run(f"{BASE_ONLY}\nimport affectrace\n{code}")
    assert f'is not installed; pip install "affectrace[{extra}]"' in done.stderr.splitlines()[-1]


def test_every_optional_package_is_in_its_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(line.startswith(package.replace("_", "-")) for line in extras[extra]), (package, extra)


def test_the_base_is_small() -> None:
    names, left = set[str](), [*PROJECT["dependencies"]]
    while left:
        requirement = Requirement(left.pop())
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and (name := canonicalize_name(requirement.name)) not in names:
            names.add(name)
            left += metadata.requires(name) or ()
    assert not names & {"torch", "pyarrow", "plotly", "scipy", "transformers", "ray", "scikit-image"}
    files = [Path(str(file.locate())) for name in names for file in metadata.files(name) or ()]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 700e6


def run(code: str, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, cwd=cwd, encoding="utf-8"
    )


def test_public_names_are_few_and_all_there() -> None:
    import affectrace

    assert len(affectrace.__all__) <= 14
    assert all(getattr(affectrace, name) is not None for name in affectrace.__all__)


def test_unknown_attribute() -> None:
    import affectrace

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = affectrace.nothing

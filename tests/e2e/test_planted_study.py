"""The planted-signal study trains what its commands train: what it reports is what they say, typed again."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("scipy", reason='needs pip install "affectrace[data]"')

from affectrace import cli
from affectrace.models import checkpoint

pytestmark = pytest.mark.weights  # face mesh, voice activity, MiniLM

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "planted.py"
TINY = ["--recordings", "5", "--seconds", "4", "--held-out", "2", "--epochs", "1", "--seeds", "1"]


def told(*arguments: object) -> dict[str, Any]:
    """A command in this process, which saves the time of starting one."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*map(str, arguments), "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("planted", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "planted", module)
    spec.loader.exec_module(module)
    return module


def test_its_numbers_are_those_of_the_commands_it_runs(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []

    def recorded(*arguments: object) -> dict[str, Any]:
        ran.append(tuple(map(str, arguments)))
        return told(*arguments)

    work, names = tmp_path / "planted", ("maven", "maven-mean")
    stages = ["data", "tune", "train", "table"]
    monkeypatch.setattr(study, "affectrace", recorded)
    monkeypatch.setattr(sys, "argv", ["planted.py", *stages, "--work", str(work), *TINY, "--only", *names])
    study.main()
    shown = capsys.readouterr().out
    assert [r[0] for r in ran[:3]] == ["synth", "extract", "import"]
    assert {r[0] for r in ran[3:]} == {"train", "evaluate"}
    manifest = json.loads((work / "data" / "manifest.json").read_text())
    assert sorted(r["split"] for r in manifest["recordings"]) == ["test", "train", "train", "validation", "validation"]

    aligned = {}
    for name in names:
        scores = json.loads((work / "scores" / f"{name}-0.json").read_text())
        command = next(r for r in ran if r[0] == "evaluate" and f"{name}-0-" in r[1] and r[1].endswith("best"))
        assert told(*command)["pooled"]["mean_ccc"] == scores["mean"]
        kept = checkpoint.load(Path(command[1]))
        aligned[name] = (kept.model.config.align, kept.extra["sequences"]["align"], kept.extra["sequences"]["align_by"])
        assert f"{scores['mean']:.3f} ({scores['mean']:.3f} to {scores['mean']:.3f})" in shown
    assert aligned == {"maven": ("linear", "linear", {}), "maven-mean": ("mean", "mean", {})}

    ran.clear()
    study.main()
    assert [r[0] for r in ran] == ["extract"], "what is there is not made again; extract sees to its files itself"

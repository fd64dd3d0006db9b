"""The commands of docs/own-data.md, section by section, on the example tables."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from affectrace import Trace
from affectrace.cli import main
from affectrace.datasets import open_dataset

ROOT = Path(__file__).parents[2]
SECTIONS = dict(
    re.findall(r"^## (.+?)\n.*?^```sh\n(.*?)^```", (ROOT / "docs/own-data.md").read_text(encoding="utf-8"), re.M | re.S)
)
DIMENSIONS = {"Physiology, arousal alone": [False, True], "Words with times": [True, False]}
QUICK = "Physiology, arousal alone"
"""The section that runs in every test run, for fewer epochs; the others are slow."""


@pytest.mark.parametrize(
    "title", [pytest.param(t, marks=() if t == QUICK else pytest.mark.slow) for t in SECTIONS] or ["none"]
)
def test_a_section_leads_from_tables_to_traces(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if "minilm" in SECTIONS[title]:
        request.getfixturevalue("minilm")
    commands = [shlex.split(line)[1:] for line in SECTIONS[title].splitlines()]
    assert {"import", "train", "evaluate", "predict"} <= {command for command, *_ in commands}
    for command, *words in commands:
        if title == QUICK:
            words = [{"20": "2"}.get(word, word) for word in words]
        more = ["--out", "scores.json"] if command == "evaluate" else []
        assert main([command, *words, *more, "--quiet"]) == 0, command

    assert main(["predict", str(words[0]), "--quiet"]) == 2  # the zero-shot model reads recordings

    has = DIMENSIONS.get(title, [True, True])
    names = [d for d, there in zip(("valence", "arousal"), has, strict=True) if there]
    pooled = json.loads(Path("scores.json").read_text())["pooled"]
    assert [pooled[f"n_{d}"] > 0 for d in ("valence", "arousal")] == has
    if title != QUICK:
        assert pooled["mean_ccc"] > 0.1
    (run,) = Path().glob("*-run")
    card = (run / "best/README.md").read_text(encoding="utf-8")
    assert [d for d in ("valence", "arousal") if f"CCC {d}" in card] == names
    manifest, _ = open_dataset(run.name.removesuffix("-run"))
    traces = {p.stem: Trace.load(p) for p in Path(f"{manifest.name}-traces").glob("*.csv") if p.stem != "summary"}
    assert set(traces) == {r.id for r in manifest}
    for trace in traces.values():
        assert trace.valid.any(axis=0).tolist() == has
    with (Path(f"{manifest.name}-traces") / "summary.csv").open(encoding="utf-8") as file:
        assert all(bool(row["valence_mean"]) == has[0] for row in csv.DictReader(file))

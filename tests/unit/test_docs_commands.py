"""Every command of docs/data.md and docs/train.md is one that the command line takes, with names that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from affectrace.cli.options import kind_of, parse
from affectrace.features import registry
from affectrace.models import checkpoint
from affectrace.train.config import recipe

DOCS = Path(__file__).parents[2] / "docs"
BLOCK, INLINE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL), re.compile(r"`(affectrace [^`]+)`")


def commands(page: str) -> list[str]:
    """Those in blocks; of data.md also those in sentences. --config is left out: its file is not here."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = [*lines, *(INLINE.findall(text) if page == "data.md" else ())]
    return sorted({re.sub(r" --config \S+", "", line) for line in found if line.startswith("affectrace ")})


@pytest.mark.parametrize(
    ("page", "least"),
    [
        ("data.md", {"synth", "import", "extract", "doctor"}),
        ("train.md", {"extract", "train", "crossval", "evaluate", "compare", "submit"}),
    ],
)
def test_what_is_typed_is_understood(page: str, least: set[str]) -> None:
    assert {line.split()[1] for line in commands(page)} >= least
    for line in commands(page):
        _, command, *words = shlex.split(line)
        options = parse(kind_of(command), command, words)
        if page == "train.md":
            named = getattr(options, "features", ())
            for text in named.split(",") if isinstance(named, str) else named:
                assert any(part in registry.NAMES for part in text.split("="))
        if hasattr(options, "recipe"):
            entry = checkpoint.entry(options.model)
            assert options.preset in entry.presets
            assert recipe(options.model, options.recipe, fold=getattr(options, "fold", 0))
            assert {text.partition("=")[0] for text in options.set} <= set(entry.config_class().__dataclass_fields__)


def test_every_feature_has_its_row() -> None:
    table = (DOCS / "data.md").read_text(encoding="utf-8").split("## Features")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    for name in registry.NAMES:
        short = name.removeprefix("mae-vit") if name in ("mae-vit-l", "mae-vit-h") else name
        assert any(f"`{short}`" in cell for cell in cells), name

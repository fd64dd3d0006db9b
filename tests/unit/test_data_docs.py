"""Every command that docs/data.md tells somebody to type is one that exists, with options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from affectrace.cli.options import kind_of, parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
LINES = sorted(
    {line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()}
    | set(re.findall(r"`(affectrace [^`]+)`", TEXT))
)
TYPED = [line for line in LINES if line.startswith("affectrace ")]


def test_the_page_has_commands() -> None:
    assert {line.split()[1] for line in TYPED} >= {"synth", "import", "extract", "doctor"}


@pytest.mark.parametrize("line", TYPED)
def test_what_is_typed_is_understood(line: str) -> None:
    words = shlex.split(line)
    parse(kind_of(words[1]), words[1], words[2:])


def test_every_feature_has_its_row() -> None:
    from affectrace.features import registry

    table = TEXT.split("## Features")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| (`.*?`)", table, re.MULTILINE))
    for name in registry.NAMES:
        short = name.removeprefix("mae-vit") if name in ("mae-vit-l", "mae-vit-h") else name
        assert any(f"`{short}`" in row for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)), (name, named)
    assert "Stands for BEiT-3" in table

"""docs/train.md: every command in it is one the command line takes, with models, recipes and extractors that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from affectrace.cli.options import kind_of, parse
from affectrace.errors import InputError
from affectrace.features import registry
from affectrace.models import checkpoint
from affectrace.train.config import recipe

PAGE = Path(__file__).parents[2] / "docs" / "train.md"


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def options_of(line: str) -> Any:
    program, command, *args = shlex.split(line)
    assert program == "affectrace"
    return parse(kind_of(command), command, args)


@pytest.mark.parametrize("line", commands(PAGE.read_text(encoding="utf-8")))
def test_a_command_of_the_page_is_taken(line: str) -> None:
    if "--config" in line:  # its file is not here
        line = re.sub(r"--config \S+", "", line)
    options = options_of(line)
    streams = getattr(options, "features", ())
    for text in streams.split(",") if isinstance(streams, str) else streams:
        assert any(part in registry.NAMES for part in text.split("="))
    if hasattr(options, "recipe"):
        entry = checkpoint.entry(options.model)
        assert options.preset in entry.presets
        assert recipe(options.model, options.recipe, fold=getattr(options, "fold", 0))
        names = {text.partition("=")[0] for text in options.set}
        assert names <= set(entry.config_class().__dataclass_fields__)


def test_the_page_has_commands_and_wrong_ones_would_be_found() -> None:
    found = commands(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 30
    assert {line.split()[1] for line in found} >= {"extract", "train", "crossval", "evaluate", "compare", "submit"}
    with pytest.raises(InputError, match="--no-such-flag"):
        options_of("affectrace train mamba-va --no-such-flag 1")

"""README.md and docs: links and file names resolve, and commands and imports are those of the package."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from affectrace.cli import COMMANDS
from affectrace.cli.options import kind_of, parse
from affectrace.features import registry
from affectrace.models import checkpoint
from affectrace.train.config import recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```|^    (affectrace [^\n]*)$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`affectrace\s+([a-z]+)[^`]*`")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/.])(?:docs|bench|examples|studies|tests|training)/[\w./-]+\.(?:json|md|mp4|py|srt)\b")


def commands(page: Path) -> list[str]:
    """Those in blocks. --config is left out: its file is not here."""
    blocks = (block or line for block, line in BLOCK.findall(page.read_text(encoding="utf-8")))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({re.sub(r" --config \S+", "", line) for line in lines if line.startswith("affectrace ")})


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them in addresses."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_file_names_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    assert [name for name in FILE.findall(text) if not any((f / name).exists() for f in (ROOT, page.parent))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_typed_is_understood(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(INLINE.findall(text)) <= set(COMMANDS)
    for block in PYTHON.findall(text):
        exec("\n".join(re.findall(r"^from affectrace.*", block, re.MULTILINE)), {})
    for line in commands(page):
        _, command, *words = shlex.split(line, comments=True)
        options = parse(kind_of(command), command, words)
        if page.name == "train.md":
            named = getattr(options, "features", ())
            for text in named.split(",") if isinstance(named, str) else named:
                assert any(part in registry.NAMES for part in text.split("="))
        if hasattr(options, "recipe"):
            entry = checkpoint.entry(options.model)
            assert options.preset in entry.presets
            assert recipe(options.model, options.recipe, fold=getattr(options, "fold", 0))
            assert {text.partition("=")[0] for text in options.set} <= set(entry.config_class().__dataclass_fields__)


def test_every_command_has_its_row() -> None:
    table = (DOCS / "README.md").read_text(encoding="utf-8").split("\n\n")[1]
    assert {name.removeprefix("affectrace ") for name in re.findall(r"`((?:affectrace )?[a-z]+)`", table)} >= set(
        COMMANDS
    )
    assert len(commands(ROOT / "README.md")) >= 5


def test_every_feature_has_its_row() -> None:
    table = (DOCS / "data.md").read_text(encoding="utf-8").split("## Features")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    for name in registry.NAMES:
        short = name.removeprefix("mae-vit") if name in ("mae-vit-l", "mae-vit-h") else name
        assert any(f"`{short}`" in cell for cell in cells), name

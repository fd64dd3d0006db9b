"""Write the source tree with one line per module docstring: folders to README.md, all files to docs/architecture.md.

python docs/make_tree.py           write
python docs/make_tree.py --check   exit code 1 if they are out of date
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree -->", "<!-- /tree -->"
OTHER = {
    "examples/": "example recording with transcript, the script that generates it, and example tables",
    "training/": "training scripts of the weights in the package, and their accuracy (truth.py)",
    "bench/, studies/": "benchmarks of speed and memory; studies on synthetic recordings (results in docs)",
    "docs/": "user guide, model cards, comparison with the papers, architecture, benchmarks, log of negative results",
    "tests/": "unit, property, parity, conformance, golden, e2e, fault and browser tests",
}


def first_line(path: Path) -> str:
    """First sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def modules(package: Path) -> list[Path]:
    """The modules of the package: in a checkout, those tracked by git."""
    listed = subprocess.run(
        ["git", "-C", package, "ls-files", "--full-name", "*.py"], capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        return list(package.rglob("*.py"))
    return [path for name in set(listed.stdout.splitlines()) if (path := ROOT / name).exists()]


def tree(files: bool) -> str:
    """The tree as a text block: every module, or only the folders."""
    package = ROOT / "src" / "affectrace"
    lines = ["src/affectrace/"]
    relative = {path.relative_to(package): path for path in modules(package)}
    for name, path in sorted(relative.items(), key=lambda item: (item[0].parent.parts, item[0].name)):
        folder, depth = path.name == "__init__.py", len(name.parts)
        if name == Path("__init__.py") or (not files and (not folder or depth > 2)):
            continue
        indent = "  " * (depth - folder)
        lines.append(f"{indent + (f'{name.parent.name}/' if folder else name.name):<34}{first_line(path)}")
    if not files:
        lines.append(f"  {'*.py':<32}Trace, Timeline, Recording, metrics, losses, configurations, errors")
    lines += [f"{name:<34}{what}" for name, what in OTHER.items()]
    return "\n".join(lines)


def main() -> int:
    """Write or check; returns the exit code."""
    stale = []
    for path in (ROOT / "README.md", ROOT / "docs" / "architecture.md"):
        text = path.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        tail = rest.split(END)[1]
        listing = tree(files=path.name != "README.md")
        new = f"{head}{BEGIN}\n```\n{listing}\n```\n{END}{tail}"
        if new != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"the file tree is out of date in {', '.join(stale)}; run `make format`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Count the package: its size, its imports, its tests, and how many files of it one thing passes through.

python docs/size.py            everything, in a minute or two (the ways run the example; they need pretrained weights)
python docs/size.py --quick    without the ways: seconds
python docs/size.py --files    also names the files of every way, and the import circles

Size. Lines are those of `wc -l`; statements `ast.stmt` nodes; tokens those of `tokenize` without comments, line ends
and indents; functions and classes `def`, `async def` and `class` wherever they stand, methods included (no lambdas).
Top entries are the folders and .py files directly in the package. A circle is a strongly connected component of the
import graph, with imports inside functions and under TYPE_CHECKING. Imports inside functions are statements.

Ways. Files of the package with a function that is called, in any thread of the process. What runs while a module is
imported does not count, nor do methods that `dataclasses` writes. Only public names are used, found where they are
defined, so modules may be renamed. The goals were set on counts by reading (21 files, 16, 17); of the definitions
tried, these come closest to them (21, 16, 16), so compare them with themselves over time.

frame    The visual modality of the example, predicted a second time by one predictor (networks are loaded, imports
         done). FOUNDATION does not count: it names the recording, its options and its weights, and never holds a
         frame (with it: 27). In brackets: files with a function that is called for at least every second frame.
label    One recording in the layout of Aff-Wild2 (made by `affectrace synth`), opened as a `Sequence` of audio and text
         features, and read; the second time. Without visual features the clock of its labels is the video's own,
         which is the longest way a label can take. FOUNDATION does not count. In brackets: with visual features.
option   The options of `affectrace predict` in PLANTED, from the command line to where they are used. A function is on
         the way where one of its arguments is the value (as text, path or number), or a list, dict or object that
         holds it directly, as text or path. All options together. In brackets: the longest way of one of them.
opens    How often `affectrace predict --report --overlay` opens its video with PyAV, which an audit hook does not see;
         in brackets: with Python's `open`, which it does.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "affectrace"
EXAMPLE = ROOT / "examples" / "example.mp4"
FOUNDATION = {"recording", "inputs", "config", "weights", "progress", "errors"}
NOT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
# transcript: {} is a copy of the example's; its name is like no other value
PLANTED = {"--fps": "7.125", "--person": "all", "--language": "en", "--smooth": "median:0.375", "--transcript": "{}"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
IMPORTS = ast.Import | ast.ImportFrom
Graph = dict[str, set[str]]


# ---- size


def parsed(package: Path) -> dict[str, ast.Module]:
    """Dotted name of every module -> its syntax tree."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return trees


def local_imports(tree: ast.AST, inside: bool = False) -> int:
    """Import statements in the bodies of functions."""
    return sum(
        (inside and isinstance(node, IMPORTS)) + local_imports(node, inside or isinstance(node, FUNCTIONS))
        for node in ast.iter_child_nodes(tree)
    )


def import_graph(trees: dict[str, ast.Module]) -> Graph:
    """Module -> the package's modules that it imports anywhere (the package uses absolute imports only)."""
    graph: Graph = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name in trees}
            elif isinstance(node, ast.ImportFrom) and node.module in trees:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= full & trees.keys()
                graph[name] |= {node.module} if full - trees.keys() else set()
        graph[name].discard(name)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one module."""

    def reached(start: str) -> set[str]:
        found, todo = {start}, [start]
        while todo:
            new = graph[todo.pop()] - found
            found |= new
            todo += new
        return found

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def n_lines(folder: Path) -> int:
    """As `wc -l` over all its Python files."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.py"))


def n_tokens(folder: Path) -> int:
    """Tokens without comments, line ends and indents."""
    texts = (io.StringIO(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py"))
    return sum(token.type not in NOT_TOKENS for text in texts for token in tokenize.generate_tokens(text.readline))


# ---- ways

Seen = Callable[[CodeType, FrameType], None]


@contextmanager
def calls(seen: Seen) -> Iterator[None]:
    """Tells `seen` of every call of a function of the package, in this thread and in those started meanwhile."""
    ours = str(PACKAGE) + os.sep

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code  # bodies of modules and classes are not CO_OPTIMIZED
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(ours):
            seen(code, frame)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def counted(work: Callable[[], object]) -> Counter[CodeType]:
    """Function -> how often `work` called it (a generator: how often it was resumed)."""
    counts: Counter[CodeType] = Counter()

    def seen(code: CodeType, _: FrameType) -> None:
        counts[code] += 1

    with calls(seen):
        work()
    return counts


def files(codes: Any, without: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """The files of functions, relative to the package; `without` names top entries (weights: also weights_*.py)."""
    names = {str(Path(code.co_filename).relative_to(PACKAGE)) for code in codes}
    return sorted(n for n in names if Path(n).parts[0].removesuffix(".py").split("_")[0] not in without)


def public(name: str) -> Any:
    """A public function or class, from the module that defines it."""
    for module, tree in parsed(PACKAGE).items():
        if any(isinstance(n, FUNCTIONS | ast.ClassDef) and n.name == name for n in tree.body):
            return getattr(importlib.import_module(module), name)
    raise SystemExit(f"docs/size.py: nothing in the package is called {name}")


def command(*argv: object) -> None:
    """Run a command of affectrace in this process."""
    from affectrace.cli import main

    if code := main([*map(str, argv), "--quiet"]):
        raise SystemExit(f"docs/size.py: affectrace {argv[0]} ended with {code}")


def way_of_a_frame(folder: Path) -> tuple[list[str], list[str]]:
    import affectrace

    predictor = affectrace.load()
    try:
        options, trace = {"modalities": ("visual",)}, predictor.predict(EXAMPLE, modalities=("visual",))
    except affectrace.AffectraceError:
        options, trace = {"modalities": ("face",)}, predictor.predict(EXAMPLE, modalities=("face",))
    counts = counted(lambda: predictor.predict(EXAMPLE, **options))
    often = [code for code, n in counts.items() if 2 * n >= len(trace)]
    return files(counts, FOUNDATION), files(often, FOUNDATION)


def way_of_a_label(folder: Path) -> tuple[list[str], list[str]]:
    data, features = folder / "data", folder / "features"
    made = ("--recordings", 2, "--seconds", 3, "--size", 128, "--two-person", 0, "--test", 0, "--jobs", 1)
    command("synth", data, *made, "--no-odd-rates", "--no-odd-rows")
    command("extract", data, "--features", "mesh-geometry,prosody,minilm-l6", "--out", features)
    manifest, _ = public("open_dataset")(data)
    recording = next(r for r in manifest if r.labels is not None)
    store, config = public("FeatureStore")(features), public("SequenceConfig")()
    open_sequences = public("open_sequences")
    streams = {"audio": "prosody", "text": "minilm-l6"}
    found = []
    for chosen in (streams, {"visual": "mesh-geometry", **streams}):

        def read(chosen: dict[str, str] = chosen) -> None:
            open_sequences([recording], manifest, store, chosen, config)[0].read(slice(0, 50))

        read()
        found.append(files(counted(read), FOUNDATION))
    return found[0], found[1]


def holds(value: object, text: str, deep: bool = True) -> bool:
    """Whether a value is the text, or holds it directly."""
    if isinstance(value, str | Path):
        return str(value) == text
    if not deep:
        return False
    if isinstance(value, float | Fraction):  # not in objects: every timeline at that rate would be the option
        return text.replace(".", "").isdigit() and value == Fraction(text)
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        inner = list(value[:100])
    elif dataclasses.is_dataclass(value) or type(value).__module__.startswith("affectrace"):
        inner = list(getattr(value, "__dict__", {}).values())
    else:
        return False
    return any(holds(part, text, deep=False) for part in inner)


def way_of_an_option(folder: Path) -> tuple[list[str], list[str]]:
    transcript = shutil.copy(EXAMPLE.with_suffix(".srt"), folder / "given-words.srt")
    ways: list[set[CodeType]] = []
    # a transcript takes the place of the recognition that the language is for: two runs
    for left_out in ("--transcript", "--language"):
        planted = {o: v.format(transcript) for o, v in PLANTED.items() if o != left_out}
        found: dict[str, set[CodeType]] = {option: set() for option in planted}
        counts: Counter[CodeType] = Counter()

        def seen(
            code: CodeType,
            frame: FrameType,
            planted: dict[str, str] = planted,
            found: dict[str, set[CodeType]] = found,
            counts: Counter[CodeType] = counts,
        ) -> None:
            counts[code] += 1
            if counts[code] > 20:  # what is called again and again gets the same again
                return
            n = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
            names = code.co_varnames[: n + bool(code.co_flags & inspect.CO_VARKEYWORDS)]
            values = [frame.f_locals.get(name) for name in (*names, *code.co_freevars)]
            for option, text in planted.items():
                if any(holds(value, text) for value in values):
                    found[option].add(code)

        with calls(seen):
            command(
                "predict", EXAMPLE, *(part for pair in planted.items() for part in pair), "--out", folder / left_out
            )
        ways += found.values()
    return files(set().union(*ways)), max(map(files, ways), key=len)


def opens_of_a_video(folder: Path) -> tuple[list[str], list[str]]:
    import av

    path = Path(shutil.copy(EXAMPLE, folder / "opened.mp4")).resolve()
    by_av, by_python = [], []

    def same(file: object) -> bool:
        return isinstance(file, str | bytes | os.PathLike) and Path(os.fsdecode(file)).resolve() == path

    def where() -> str:
        stack = inspect.stack(context=0)[2:]
        lines = (f"{Path(f.filename).relative_to(PACKAGE)}:{f.function}" for f in stack if str(PACKAGE) in f.filename)
        return " < ".join([*lines][:3])

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event == "open" and same(values[0]):
            by_python.append(where())

    def av_open(file: object, *args: object, **more: object) -> object:
        if same(file):
            by_av.append(where())
        return real(file, *args, **more)

    real, av.open = av.open, av_open
    sys.addaudithook(hook)
    command("predict", path, "--report", "--overlay", "--out", folder / "out")
    return by_av, by_python


WAYS = {
    "frame": way_of_a_frame,
    "label": way_of_a_label,
    "option": way_of_an_option,
    "opens": opens_of_a_video,
}


def walked(way: str) -> tuple[list[str], list[str]]:
    """A way, walked in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "way.json"
        paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            [sys.executable, __file__, "--walk", way, str(out)], env={**os.environ, "PYTHONPATH": paths}, check=True
        )
        all_of_it, part = json.loads(out.read_text())
        return all_of_it, part


# ---- the table


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without the ways")
    parser.add_argument("--files", action="store_true", help="also name the files of every way, and the circles")
    parser.add_argument("--walk", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.walk:
        way, out = asked.walk
        Path(out).write_text(json.dumps(WAYS[way](Path(out).parent)))
        return 0

    trees = parsed(PACKAGE)
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    entries = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")]
    rounds = circles(import_graph(trees))
    size = (
        ("source lines", n_lines(PACKAGE), 25_000),
        ("statements", sum(isinstance(n, ast.stmt) for n in nodes), 15_500),
        ("tokens", n_tokens(PACKAGE), 190_000),
        ("modules", len(trees), 125),
        ("top entries", len(entries), 25),
        ("functions", sum(isinstance(n, FUNCTIONS) for n in nodes), 1_500),
        ("classes", sum(isinstance(n, ast.ClassDef) for n in nodes), 270),
        ("import circles", len(rounds), 0),
        ("imports inside functions", sum(map(local_imports, trees.values())), 80),
        ("test lines", n_lines(ROOT / "tests"), 16_000),
    )
    print("what                            now      goal")
    for what, n, goal in size:
        print(f"{what:<26}{n:>9,}{goal:>10,}")
    if asked.files:
        print(*(f"    {' <-> '.join(group)}" for group in rounds), sep="\n")
    if not asked.quick:
        for what, way, goal, note in (
            ("files of a frame", "frame", 10, "for every frame"),
            ("files of a label", "label", 8, "with visual features"),
            ("files of an option", "option", 8, "one option alone"),
            ("opens of a video", "opens", 4, "by PyAV; by Python"),
        ):
            walk, part = walked(way)
            print(f"{what:<26}{len(walk):>9,}{goal:>10,}    ({note}: {len(part)})", flush=True)
            if asked.files:
                print(*(f"    {name}{' *' if name in part else ''}" for name in walk), sep="\n")
    print("times: `time make test`, `time make test-slow`; speed and memory: bench/predict.py, bench/store.py")
    print("branch coverage: `python -m pytest --cov=affectrace --cov-branch` (needs pytest-cov)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command that checks this machine, or a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.options import INPUTS, Common, parse, under
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError

if TYPE_CHECKING:
    from affectrace.datasets.gold_standard import RaterReport


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Common):
    """What is installed, which weights are found, what this machine can do; with --data, what is in a data set.

    Exit code 1: something is missing, or something in the data set needs attention (leaks between sets, missing or
    broken files). Oddities of a data set that are handled are listed and leave it 0.
    """

    data: Annotated[Path | None, under(INPUTS)] = None
    """A data set (Aff-Wild2 layout, manifest.json or its folder): counts, one table of all problems, leaks between
    sets, agreement of raters. Or a folder of recordings: can they be opened."""


def doctor(argv: Sequence[str]) -> int:
    """`affectrace doctor`."""
    options = parse(DoctorOptions, "doctor", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets import is_dataset

        if options.data is not None and not options.data.exists():
            raise InputError("no such file or folder", where=options.data, hint="check the path")
        if options.data is not None and is_dataset(options.data):
            return _examine_data(options.data, terminal)
        from affectrace.cli.doctor import examine

        checks = examine(options.data)
        terminal.table(
            "", ["check", "state", "found", "what to do"], [[c.name, c.state, c.detail, c.hint] for c in checks]
        )
        terminal.result({"checks": [vars(c) if hasattr(c, "__dict__") else configs.to_dict(c) for c in checks]})
        return DONE if all(c.state != "missing" for c in checks) else SOME_FAILED


def _examine_data(path: Path, terminal: Terminal) -> int:
    from affectrace.datasets.check import examine
    from affectrace.datasets.manifest import PROBLEM_COLUMNS

    found = examine(path, progress=terminal.progress)
    terminal.close()
    columns = ["set", "recordings", "videos or sounds", "subjects", "subject unknown", "frames", "labelled"]
    terminal.table(
        found.manifest.name,
        columns,
        [[v or None if k == "frames" else v for k, v in vars(s).items()] for s in found.sets],
    )
    print_agreement(found.raters, terminal)
    if found.problems:
        terminal.table("problems", PROBLEM_COLUMNS, [p.cells for p in found.problems])
    for note in found.notes:
        terminal.say(f"note: {note}")
    n = len(found.problems)
    terminal.say(f"{path}: " + (f"problems: {n}, of which need attention: {found.n_attention}" if n else "no problems"))
    terminal.result(found.to_dict())
    return SOME_FAILED if found.n_attention else DONE


def print_agreement(raters: RaterReport, terminal: Terminal) -> None:
    """How well raters agree, and what one of them scores against the others."""
    columns = ["raters", "how many", "frames", "rated by all", "ICC(2,1)", "ICC(2,k)", "ICC(3,1)", "ICC(3,k)", "alpha"]
    columns += ["CCC of pairs", "CCC of one against the others"]
    rows = []
    for a in raters.agreement:
        one = None if raters.human is None else getattr(raters.human.pooled, a.dimension).ccc
        forms = [a.icc[form] for form in ("2,1", "2,k", "3,1", "3,k")]
        rows.append([a.dimension, a.n_raters, a.n_frames, a.n_complete, *forms, a.alpha, a.mean_ccc, one])
    if rows:
        terminal.table("agreement of raters", columns, rows)

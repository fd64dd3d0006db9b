"""Data commands: synth, import, extract."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.commands import ExtractOptions, ImportOptions, SynthOptions
from affectrace.cli.terminal import Terminal
from affectrace.datasets.aff_wild2 import read_aff_wild2
from affectrace.datasets.aff_wild2_files import is_aff_wild2
from affectrace.datasets.catalog import is_dataset, open_dataset
from affectrace.datasets.check import examine
from affectrace.datasets.folds import with_folds
from affectrace.datasets.gold_standard import RaterReport
from affectrace.datasets.manifest import FILE_NAME, PROBLEM_COLUMNS, PROBLEMS_FILE, Manifest, Problem, write_problems
from affectrace.datasets.table_schema import TableDescription, describe
from affectrace.datasets.tables import import_tables
from affectrace.errors import InputError, OutputError
from affectrace.features.store import FEATURES, FeatureStore
from affectrace.recording import find_recordings, readable

REPEATS = 5
"""Problems that differ in numbers and recordings only, up to which each is printed (ours)."""


def synth(options: SynthOptions, terminal: Terminal) -> int:
    """Synthetic recordings."""
    from affectrace.datasets.synthetic import already_made, left_behind, synthesize  # the extra `data`

    for folder in left_behind(options.out):
        terminal.say(f"note: {folder} is from another run; remove it if none is running")
    report = already_made(options.out, options.made)
    if report is not None:
        terminal.say(f"{options.out} already exists, made with these options; nothing to do")
    else:
        report = synthesize(options.out, options.made, jobs=options.jobs, progress=terminal.progress)
    values = {"out": str(report.root), "trials": report.trials, "frames": report.frames, "oracle": report.oracle}
    terminal.done(values, *report.lines())
    return DONE


def import_data(options: ImportOptions, terminal: Terminal) -> int:
    """A data set from tables, or from an Aff-Wild2 tree."""
    out, data = options.out, options.data
    if not data.exists():
        raise InputError("no such file or folder", where=data, hint="check the path")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FILE_NAME).is_file())):
        what = "exists and is neither empty nor a data set of affectrace"
        raise OutputError(what, where=out, hint="name a new folder with --out")
    raters, notes = RaterReport(), tuple[str, ...]()
    written = out / FILE_NAME
    if data.is_dir() and not (options.features or options.labels) and is_aff_wild2(data):
        manifest, problems = read_aff_wild2(data, progress=terminal.progress)
        manifest = with_folds(manifest, options.folds) if options.folds else manifest
        write_problems(problems, out / PROBLEMS_FILE)
        manifest.save(written)
    else:
        description, folder = _description(options)
        made = import_tables(description, folder, out, n_folds=options.folds, progress=terminal.progress)
        manifest, problems, raters, notes = made.manifest, made.problems, made.raters, made.notes
    terminal.close()
    print_synthetic(data, manifest, terminal)
    print_agreement(raters, terminal)
    for note in notes:
        terminal.say(note)
    for name in FeatureStore(out / FEATURES).extractors:
        terminal.say(f"features: {name}")
    terminal.say(f"data set: {written} (recordings: {len(manifest)})")
    if problems:
        terminal.say(f"problems: {len(problems)}, listed in {out / PROBLEMS_FILE}")
    terminal.result(
        {
            "manifest": str(written),
            "synthetic": manifest.synthetic,
            "recordings": [r.id for r in manifest],
            "problems": [asdict(p) for p in problems],
            **raters.to_dict(),
        }
    )
    return DONE


def _description(options: ImportOptions) -> tuple[TableDescription, Path]:
    """The description of the tables, and their folder."""
    named = bool(options.features or options.labels)
    if options.data.is_file():
        if named:
            hint = "leave these options out, or name the folder of the tables"
            raise InputError("a description and --features or --labels are given", where=options.data, hint=hint)
        return TableDescription.load(options.data), options.tables or options.data.parent
    if not named:
        hint = "name a description (JSON), or give --features MODALITY=PATH and --labels PATH; see docs/data.md"
        raise InputError("has no description of its tables", where=options.data, hint=hint)
    described = describe(
        readable(options.data.resolve().name),
        options.features,
        options.labels,
        time=options.time,
        rate_hz=options.rate_hz,
        label_rate_hz=options.label_rate_hz,
        low=options.low,
        high=options.high,
        decimal=options.decimal,
        subject=options.subject,
    )
    return described, options.data


def extract(options: ExtractOptions, terminal: Terminal) -> int:
    """Features of recordings."""
    from affectrace.features import registry
    from affectrace.features.extract import extract as extract_features

    names = [name.strip() for name in options.features.split(",") if name.strip()]
    registry.choices_of(names)  # refuses unknown names before a whole data set is read
    if len(options.data) == 1 and is_dataset(options.data[0]):
        recordings = list(manifest_of(Path(options.data[0]), terminal))
    else:
        recordings = find_recordings(options.data, note=terminal.say)
    report = extract_features(recordings, options.out, names, options.extraction, progress=terminal.progress)
    terminal.close()
    for note in report.notes:
        terminal.say(note)
    for name, remarks in report.remarks.items():
        for remark in remarks:
            terminal.say(f"{name}: {remark}")
    for name, why in report.failed.items():
        terminal.error(f"{name}: {why}")
    counts = f"files made: {report.made}, there before: {report.kept}, recordings failed: {len(report.failed)}"
    terminal.say(f"features: {report.out} ({counts} of {len(recordings)})")
    kept = {name: getattr(report, name) for name in ("made", "kept", "failed", "notes", "remarks")}
    terminal.result({"out": str(report.out), "extractors": [e.to_dict() for e in report.extractors], **kept})
    return SOME_FAILED if report.failed else DONE


def examine_dataset(path: Path, terminal: Terminal) -> int:
    """Counts, problems and rater agreement of a data set, for `doctor`."""
    found = examine(path, progress=terminal.progress)
    terminal.close()
    columns = ["set", "recordings", "videos or sounds", "subjects", "subject unknown", "frames", "labelled"]
    rows = [[v or None if k == "frames" else v for k, v in vars(s).items()] for s in found.sets]
    terminal.table(found.manifest.name, columns, rows)
    print_agreement(found.raters, terminal)
    if found.problems:
        terminal.table("problems", PROBLEM_COLUMNS, _without_repeats(found.problems, found.manifest))
    for note in found.notes:
        terminal.say(f"note: {note}")
    n = len(found.problems)
    terminal.say(f"{path}: " + (f"problems: {n}, of which need attention: {found.n_attention}" if n else "no problems"))
    terminal.result(found.to_dict())
    return SOME_FAILED if found.n_attention else DONE


def _without_repeats(problems: Sequence[Problem], manifest: Manifest) -> list[tuple[str, ...]]:
    """Rows of the table of problems; more than `REPEATS` that differ in recordings and numbers only are one row."""
    names = re.compile("|".join([*(rf"\b{re.escape(r.id)}\b" for r in manifest), r"\d+"]))
    alike: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        suffix = Path(problem.file).suffix
        alike.setdefault((suffix, names.sub("", problem.what), problem.done, str(problem.attention)), []).append(
            problem
        )
    rows = []
    for same in alike.values():
        rows += [p.cells for p in (same if len(same) <= REPEATS else same[:1])]
        if len(same) > REPEATS:
            rows.append(("", "", f"{len(same) - 1} more like this (all with --json)", *same[0].cells[3:]))
    return rows


def manifest_of(path: Path, terminal: Terminal) -> Manifest:
    """A data set; says whether it is synthetic, and how many of its problems need attention."""
    manifest, problems = open_dataset(path, progress=terminal.progress)
    print_synthetic(path, manifest, terminal)
    if needed := sum(p.attention for p in problems):
        terminal.say(
            f"{path}: problems that need attention: {needed}; list them with `affectrace doctor --data {path}`"
        )
    return manifest


def print_synthetic(path: Path, manifest: Manifest, terminal: Terminal) -> None:
    """Say so if a data set was made by `affectrace synth`."""
    if manifest.synthetic:
        terminal.say(f"{path}: synthetic recordings of `affectrace synth`; scores do not apply to real people")


def print_agreement(raters: RaterReport, terminal: Terminal) -> None:
    """Agreement of the raters, and the score of each against the others."""
    columns = ["raters", "how many", "frames", "rated by all", "ICC(2,1)", "ICC(2,k)", "ICC(3,1)", "ICC(3,k)", "alpha"]
    columns += ["CCC of pairs", "CCC of one against the others"]
    rows = []
    for a in raters.agreement:
        one = None if raters.human is None else getattr(raters.human.pooled, a.dimension).ccc
        forms = [a.icc[form] for form in ("2,1", "2,k", "3,1", "3,k")]
        rows.append([a.dimension, a.n_raters, a.n_frames, a.n_complete, *forms, a.alpha, a.mean_ccc, one])
    if rows:
        terminal.table("inter-rater agreement", columns, rows)

"""The commands that make data for training: known recordings, data sets of one's own, features from recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group

from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.options import INPUTS, OUTPUT, Common, Files, flat, parse, under
from affectrace.cli.terminal import Terminal
from affectrace.datasets.synthetic import SynthConfig
from affectrace.errors import InputError, OutputError
from affectrace.features.config import ExtractConfig, FrameRate
from affectrace.recording import find_recordings, readable

if TYPE_CHECKING:
    from affectrace.datasets.gold_standard import RaterReport
    from affectrace.datasets.manifest import Manifest
    from affectrace.datasets.table_schema import TableDescription


MADE, EXTRACTION = (Group(n, sort_key=3) for n in ("Recordings", "Extraction"))


@dataclass(frozen=True, kw_only=True)
class SynthOptions(Common):
    """Recordings with known valence and arousal, in the layout of Aff-Wild2: real media, labels, crops, words, lists.

    Smile follows valence, eyes, brows and mouth follow arousal; words follow valence, pitch, loudness and rate of the
    voice follow arousal. Labels remember what was shown before. The same seed makes the same bytes.
    """

    out: Path = field(kw_only=False)
    """A new folder. It is there when everything in it is done, and not before."""
    made: Annotated[SynthConfig, flat(MADE)] = field(default_factory=SynthConfig)
    jobs: Annotated[int, under(MADE)] = 0
    """Processes; 0: one a core. The result does not depend on it."""


def synth(argv: Sequence[str]) -> int:
    """`affectrace synth`."""
    options = parse(SynthOptions, "synth", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets.synthetic import already_made, left_behind, synthesise

        for folder in left_behind(options.out):
            terminal.say(f"note: {folder} is of another run; remove it if none is under way")
        report = already_made(options.out, options.made)
        if report is not None:
            terminal.say(f"{options.out} is there already, made with these options; nothing is done")
        else:
            report = synthesise(options.out, options.made, jobs=options.jobs, progress=terminal.progress)
        terminal.close()
        for line in report.lines():
            terminal.say(line)
        terminal.result(
            {"out": str(report.root), "trials": report.trials, "frames": report.frames, "oracle": report.oracle}
        )
    return DONE


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Common):
    """Make a data set of anyone's tables, or of the Aff-Wild2 layout: a manifest, and a table of all that was odd.

    Tables: features and labels (CSV, TSV, Parquet, NPZ), each on its own clock; several raters, with their agreement
    and one gold standard; words. Described by a JSON file (docs/data.md has the fields), or in the usual case by flags:
    `affectrace import study --features physiology=signals/{id}.csv --labels ratings/{id}.csv --time seconds`.
    """

    data: Annotated[Path, under(INPUTS)] = field(kw_only=False)
    """A description (JSON), a folder of tables (with --features or --labels), or the folder of an Aff-Wild2 tree."""
    out: Path = Path("dataset")
    """Folder for manifest.json and problems.csv; of tables also features, labels, raters and transcripts."""
    tables: Path | None = None
    """Folder the paths of a description start from; by default the folder it lies in."""
    features: Annotated[tuple[str, ...], under(INPUTS)] = ()
    """Without a description: MODALITY=PATH of each table, {id} in the place of the recording's id. Its columns of
    numbers are features, but for labels, times and counts of rows; what is left out is said."""
    labels: str | None = None
    """Without a description: path of tables with columns valence and arousal."""
    time: str | None = None
    """Column of times in seconds, in all these tables."""
    rate_hz: FrameRate | None = None
    """Rows a second of the features, where they have no times (25, 30000/1001)."""
    label_rate_hz: FrameRate | None = None
    """The same of the labels; by default the features'."""
    low: float = -1.0
    """Lower end of the labels' scale; it becomes -1."""
    high: float = 1.0
    """Upper end; it becomes 1."""
    folds: Annotated[int, under(OUTPUT)] = 0
    """Put training and validation recordings into so many folds; what shares a video or a subject stays together."""


def import_data(argv: Sequence[str]) -> int:
    """`affectrace import`."""
    options = parse(ImportOptions, "import", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets.aff_wild2 import read_aff_wild2
        from affectrace.datasets.aff_wild2_files import is_aff_wild2
        from affectrace.datasets.folds import with_folds
        from affectrace.datasets.gold_standard import RaterReport
        from affectrace.datasets.manifest import FILE_NAME, PROBLEMS_FILE, write_problems
        from affectrace.datasets.tables import import_tables

        out, data = options.out, options.data
        if not data.exists():
            raise InputError("no such file or folder", where=data, hint="check the path")
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / FILE_NAME).is_file())):
            hint = "name a new folder with --out"
            raise OutputError("exists and is neither empty nor a data set of ours", where=out, hint=hint)
        raters, notes = RaterReport(), tuple[str, ...]()
        if data.is_dir() and not (options.features or options.labels) and is_aff_wild2(data):
            manifest, problems = read_aff_wild2(data, progress=terminal.progress)
            write_problems(problems, out / PROBLEMS_FILE)
        else:
            description, folder = _description(options)
            made = import_tables(description, folder, out, progress=terminal.progress)
            manifest, problems, raters, notes = made.manifest, made.problems, made.raters, made.notes
        if options.folds:
            manifest = with_folds(manifest, options.folds)
        written = manifest.save(out / FILE_NAME)
        terminal.close()
        print_synthetic(data, manifest, terminal)
        print_agreement(raters, terminal)
        for note in notes:
            terminal.say(note)
        terminal.say(f"data set: {written} (recordings: {len(manifest)})")
        if problems:
            terminal.say(f"oddities: {len(problems)}, listed in {out / PROBLEMS_FILE}")
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
    """The description of the tables, and where they lie."""
    from affectrace.datasets.table_schema import TableDescription, describe

    if options.data.is_file():
        if options.features or options.labels:
            hint = "leave these options out, or name the folder of the tables"
            raise InputError("a description and --features or --labels are given", where=options.data, hint=hint)
        return TableDescription.load(options.data), options.tables or options.data.parent
    if not (options.features or options.labels):
        hint = "name a description (JSON), or give --features MODALITY=PATH and --labels PATH; see docs/data.md"
        raise InputError("what the tables in it are is not said", where=options.data, hint=hint)
    described = describe(
        readable(options.data.resolve().name),
        options.features,
        options.labels,
        time=options.time,
        rate_hz=options.rate_hz,
        label_rate_hz=options.label_rate_hz,
        low=options.low,
        high=options.high,
    )
    return described, options.data


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Common):
    """Features of recordings, one file a recording and extractor. Stop it and start it again: nothing is done twice.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Faces: fer,
    mesh-geometry. Sound: hubert-base, wav2vec2-base, whisper-tiny.en (-layerK after one of the three: a hidden
    state other than the last), prosody. Words: roberta-base, minilm-l6.
    NAME=FOLDER or NAME=user/model@COMMIT brings other weights; A|B tries A, then B; visual, audio, text are such lists.
    """

    data: Files = field(default=(), kw_only=False)
    """A data set (manifest.json, its folder, or the Aff-Wild2 layout), or videos, sound files and folders of them."""
    features: Annotated[str, under(INPUTS)] = "visual,audio,text"
    """Names, with commas between them."""
    out: Path = Path("features")
    """Folder for feature files: OUT/NAME/RECORDING.safetensors."""
    extraction: Annotated[ExtractConfig, flat(EXTRACTION)] = field(default_factory=ExtractConfig)


def extract(argv: Sequence[str]) -> int:
    """`affectrace extract`."""
    options = parse(ExtractOptions, "extract", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets import is_dataset
        from affectrace.features import extract as engine
        from affectrace.features import registry

        names = [name.strip() for name in options.features.split(",") if name.strip()]
        registry.choices_of(names)  # a mistyped name costs a line now, not after a whole tree was read
        if len(options.data) == 1 and is_dataset(options.data[0]):
            recordings = list(manifest_of(Path(options.data[0]), terminal))
        else:
            recordings = find_recordings(options.data, note=terminal.say)
        report = engine.extract(recordings, options.out, names, options.extraction, progress=terminal.progress)
        terminal.close()
        for note in report.notes:
            terminal.say(note)
        for name, remarks in report.remarks.items():
            for remark in remarks:
                terminal.say(f"{name}: {remark}")
        for name, why in report.failed.items():
            terminal.error(f"{name}: {why}")
        n = len(recordings)
        files = (
            f"files made: {report.made}, there before: {report.kept}, recordings failed: {len(report.failed)} of {n}"
        )
        terminal.say(f"features: {report.out} ({files})")
        terminal.result(
            {
                "out": str(report.out),
                "extractors": [e.to_dict() for e in report.extractors],
                **{k: getattr(report, k) for k in ("made", "kept", "failed", "notes", "remarks")},
            }
        )
    return SOME_FAILED if report.failed else DONE


def manifest_of(path: Path, terminal: Terminal) -> Manifest:
    """A data set by its path; says whether it was generated, and how much in it needs attention."""
    from affectrace.datasets import open_dataset

    manifest, problems = open_dataset(path, progress=terminal.progress)
    print_synthetic(path, manifest, terminal)
    if needed := sum(p.attention for p in problems):  # oddities that are handled are doctor's to list
        terminal.say(f"{path}: oddities that need attention: {needed}; `affectrace doctor --data {path}` lists them")
    return manifest


def print_synthetic(path: Path, manifest: Manifest, terminal: Terminal) -> None:
    """Say so where `affectrace synth` made a data set."""
    if manifest.synthetic:
        terminal.say(f"{path}: synthetic recordings, made by `affectrace synth`; scores say nothing of real people")


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

"""The commands that move models and traces between forms: others' checkpoints in; ONNX, formats and the Hub out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.options import INPUTS, OUTPUT, Common, Files, parse
from affectrace.cli.terminal import Terminal
from affectrace.cli.traces import trace_paths
from affectrace.errors import InputError, OutputError

if TYPE_CHECKING:
    from affectrace.models.base import AffectModel


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Common):
    """The authors' checkpoint as a folder of ours, which predict, evaluate, compare and export take.

    The file is read as tensors only: nothing in it is executed. Every tensor is used, or named with the reason.
    """

    checkpoint: Path = field(default=Path(), kw_only=False)
    """Their .pt, .pth or .safetensors file."""
    source: Annotated[Literal["charon", "maven"] | None, Parameter(name="--from", group=INPUTS)] = None
    """Whose: charon (Mamba-VA, FreedomPuppy77/Charon) or maven (Vrushank-Ahire/MAVEN_8th_ABAW, both its networks)."""
    out: Path = Path("converted")
    """Folder to write."""
    standardise: bool = False
    """maven: each input by its own mean and deviation before the network, as the authors' loader does."""


def convert(argv: Sequence[str]) -> int:
    """`affectrace convert`."""
    options = parse(ConvertOptions, "convert", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        if options.source is None:
            what = "whose checkpoint it is must be said"
            raise InputError(what, where="convert", hint="--from charon, or --from maven")
        if options.checkpoint == Path():
            hint = f"affectrace convert ckpt.pt --from {options.source}"
            raise InputError("no checkpoint is named", where="convert", hint=hint)
        model, preset, unused = _convert(options.checkpoint, options.source, options.out, options.standardise)
        notes = [] if options.standardise else [SOURCES[options.source][2]]
        n_parameters = sum(p.numel() for p in model.parameters())
        terminal.say(f"model: {options.out} ({model.name}, {preset}, {n_parameters:,} parameters)")
        reasons = Counter("the same as another" if "same tensor" in why else why for why in unused.values())
        for why, n in reasons.items():
            terminal.say(f"{n} tensors without a use: {why} (named in {options.out / 'config.json'})")
        for note in notes:
            terminal.say(f"note: {note}")
        terminal.result(
            {
                "folder": str(options.out),
                "model": model.name,
                "preset": preset,
                "parameters": n_parameters,
                "unused": unused,
                "notes": notes,
            }
        )
    return DONE


SOURCES = {  # the authors, the extractors of their streams, and what a user must know
    "charon": (
        "FreedomPuppy77/Charon, the code of arXiv:2503.10104",
        {"visual": "mae-vit-l"},
        "its features are those of the authors' fine-tuned encoder: give its folder when you predict, "
        "--features visual=mae-vit-l=FOLDER; the stock encoder's are others",
    ),
    "maven": (
        "Vrushank-Ahire/MAVEN_8th_ABAW, the code of arXiv:2503.12623",
        {"visual": "swin-b", "audio": "hubert-base", "text": "roberta-base"},
        "the authors standardise every embedding tensor as it is loaded: convert with --standardise to predict as "
        "they do",
    ),
}
MAVEN_WINDOW_FRAMES = (900, 60)
"""Longest piece of an utterance and what two share: 30 s and 2 s (ours) at the 30 frames/s its authors assume."""


def _convert(path: Path, source: str, out: Path, standardise: bool) -> tuple[AffectModel, str, dict[str, str]]:
    """Write the authors' checkpoint as a folder of ours: the model, its preset, tensors without a use."""
    from affectrace.inference.run import sequence_config, sequences_dict
    from affectrace.models import checkpoint
    from affectrace.sequences.windows import WindowScheme

    if not path.is_file():
        raise InputError("no such file", where=path, hint="give the file the authors' training script saved")
    if standardise and source != "maven":
        raise InputError(f"{source} standardises nothing", hint="leave out --standardise")
    if (out / checkpoint.CONFIG).exists() or (out / checkpoint.WEIGHTS).exists():
        raise OutputError("holds a model already", where=out, hint="choose another --out")
    converted = checkpoint.convert(path, source)
    model, preset, (authors, features, _) = converted.model, "released", SOURCES[source]
    if source == "maven":
        preset = "released_mlp" if model.config.topology == "none" else "released_beit"
    if standardise:
        weights = model.state_dict()
        model = checkpoint.create(model.name, **vars(model.config) | {"standardise": True}).eval()
        model.load_state_dict(weights)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    extra = {
        "converted": {"from": authors, "file": path.name, "sha256": sha256, "unused": converted.unused},
        "features": features,
        "sequences": sequences_dict(sequence_config(model)),
    }
    if source == "maven":  # an utterance at a time, as the authors run it; long ones in pieces
        extra["training"] = {"window": configs.to_dict(WindowScheme.maven(*MAVEN_WINDOW_FRAMES))}
    checkpoint.save(model, out, preset=preset, extra=extra)
    configs.write_atomic(
        out / "README.md",
        f"---\nlibrary_name: affectrace\ntags: [affectrace, {model.name}, valence, arousal]\n---\n\n"
        f"# {model.name} ({preset})\n\nConverted from `{path.name}` (sha256 {sha256}), a checkpoint of "
        f"{authors}. The weights are the authors': their licence holds, and the terms of the data they were "
        "trained on. Nothing was trained or measured here.\n\n"
        "Estimates describe what is shown and heard, not what a person feels.\n",
    )
    return model, preset, converted.unused


@dataclass(frozen=True, kw_only=True)
class PushOptions(Common):
    """A trained model on the Hugging Face Hub: the checkpoint's files and its card, nothing else of the folder.

    Afterwards `affectrace predict --model USER/MODEL@COMMIT` takes it anywhere. Needs an account: `hf auth login`.
    """

    folder: Path = field(default=Path("run/best"), kw_only=False)
    """What `affectrace train` or `convert` wrote."""
    repo_id: str = field(default="", kw_only=False)
    """user/model; made where it is not there."""
    public: bool = False
    """Anyone may see a repository that is made now; otherwise its owner alone."""
    message: str = ""
    """Of the commit; by default the model's name and hash."""


def push(argv: Sequence[str]) -> int:
    """`affectrace push`."""
    options = parse(PushOptions, "push", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        import affectrace

        done = affectrace.push(
            options.folder,
            options.repo_id,
            private=not options.public,
            message=options.message,
            progress=terminal.progress,
        )
        terminal.close()
        terminal.say(f"model: {done.name}")
        terminal.say(f"page:  {done.url}")
        terminal.result(asdict(done))
    return DONE


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Common):
    """Traces in another format, or a trained model as ONNX.

    A causal model becomes a step: features and state in, valence, arousal and new state out. Another becomes a window
    of frames. The file is run beside torch before it is written (difference at most 1e-5).
    """

    inputs: Files = field(default=(), kw_only=False)
    """Trace files and folders of them; with --to onnx one checkpoint folder."""
    to: Annotated[Literal["csv", "parquet", "json", "onnx"], Parameter(alias="--format", group=OUTPUT)] = "csv"
    """Format to write."""
    out: Path = Path("affectrace_out")
    """Folder to write to; with --to onnx this may be the file, NAME.onnx."""
    frames: int | None = None
    """onnx: frames of a call; by default 1 for a causal model, 256 for another."""


def export(argv: Sequence[str]) -> int:
    """`affectrace export`."""
    options = parse(ExportOptions, "export", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        if options.to == "onnx":
            return _export_model(options, terminal)
        if options.frames is not None:
            raise InputError("--frames belongs to --to onnx", hint="leave it out")
        from affectrace.cli.output_folder import OutFolder
        from affectrace.trace import Trace

        for given in options.inputs:
            if (Path(given) / "model.safetensors").is_file():
                raise InputError("is a model, not a trace", where=given, hint="export it with --to onnx")
        traces: dict[str, Trace] = {}
        for path in trace_paths(options.inputs):
            name = f"{path.stem}.{options.to}"
            if name in traces:
                raise InputError("two traces have this name", where=path, hint="export them one at a time")
            traces[name] = Trace.load(path)
        out = OutFolder(options.out)
        targets = [out.check(name) for name in traces]  # all of them, before the first is written
        written = [trace.save(target) for trace, target in zip(traces.values(), targets, strict=True)]
        terminal.result({"written": [str(p) for p in written]})
        for path in written:
            terminal.say(f"trace: {path}")
    return DONE


def _export_model(options: ExportOptions, terminal: Terminal) -> int:
    if len(options.inputs) != 1:
        raise InputError(f"--to onnx takes one checkpoint folder, got {len(options.inputs)}", hint="as run/best")
    from affectrace.inference.export_onnx import export_onnx
    from affectrace.inference.run import TrainedModel
    from affectrace.models.publish import checkpoint_folder

    folder = checkpoint_folder(options.inputs[0], progress=terminal.progress)
    model = TrainedModel.load(folder)
    path = options.out if options.out.suffix == ".onnx" else options.out / f"{model.id.replace('@', '-')}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = export_onnx(model, path, n_frames=options.frames)
    terminal.say(f"model: {done.path} (differs from torch by {done.difference:.1g} over {done.checked} frames)")
    for kind, tensors in (("in", done.inputs), ("out", done.outputs)):
        terminal.table("", [kind, "shape"], [[n, " x ".join(map(str, s))] for n, s in tensors.items()])
    terminal.result({**asdict(done), "path": str(done.path), "model": model.id})
    return DONE


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Common):
    """Pretrained weights, their licences and where they are."""

    action: Literal["list", "fetch", "verify"] = field(default="list", kw_only=False)
    """list: all sources with licence and state; fetch: download; verify: hash every file again."""
    names: Files = field(default=(), kw_only=False)
    """Which ones; by default those that `predict` needs."""
    all: bool = False
    """Every source, also optional ones."""


def weights(argv: Sequence[str]) -> int:
    """`affectrace weights`."""
    options = parse(WeightsOptions, "weights", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace import weights as store

        names = [s.name for s in store.sources()] if options.all else list(options.names) or None
        if options.action == "list":
            rows = store.rows()
            if options.names:
                known = {r["name"]: r for r in rows}
                rows = [known[store.source(n).name] for n in options.names]
            columns = ["name", "role", "licence", "used", "state", "size_mb", "from"]
            terminal.table("", columns, [[r[c] for c in columns] for r in rows])
            terminal.result({"weights": rows})
            return DONE
        if options.action == "fetch":
            folders = store.fetch(names, progress=terminal.progress)
            terminal.close()
            terminal.result({"fetched": [str(f) for f in folders]})
            for folder in folders:
                terminal.say(f"weights: {folder}")
            return DONE
        problems = store.verify(names, progress=terminal.progress)
        terminal.close()
        terminal.result({"problems": [vars(p) for p in problems]})
        for problem in problems:
            terminal.error(f"{problem.name}: {problem.file}: {problem.what}; {problem.hint}")
        if not problems:
            terminal.say("every file is as it was pinned")
        return SOME_FAILED if problems else DONE

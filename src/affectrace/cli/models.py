"""Model commands: convert, export --to onnx, push, weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from affectrace import config as configs
from affectrace import weights as store
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.commands import ConvertOptions, ExportOptions, PushOptions, WeightsOptions
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError, OutputError
from affectrace.sequences.config import WindowScheme
from affectrace.weights.download import sha256_of

if TYPE_CHECKING:
    from affectrace.models.base import AffectModel


@dataclass(frozen=True)
class Repository:
    """A repository whose checkpoints can be converted. extractors: stream -> extractor. note: what a user must know."""

    repository: str
    extractors: dict[str, str]
    note: str


SOURCES = {
    "charon": Repository(
        "FreedomPuppy77/Charon, the code of arXiv:2503.10104",
        {"visual": "mae-vit-l"},
        "it expects features of the authors' fine-tuned encoder, not the stock one: predict with "
        "--features visual=mae-vit-l=FOLDER",
    ),
    "maven": Repository(
        "Vrushank-Ahire/MAVEN_8th_ABAW, the code of arXiv:2503.12623",
        {"visual": "swin-b", "audio": "hubert-base", "text": "roberta-base"},
        "the authors standardise every embedding tensor as it is loaded: convert with --standardise to do the same",
    ),
}
MAVEN_WINDOW_FRAMES = (900, 60)
"""Longest piece of an utterance, and overlap: 30 s and 2 s (ours) at the 30 frames/s its authors assume."""
CARD = """---
library_name: affectrace
tags: [affectrace, {model}, valence, arousal]
---

# {model} ({preset})

Converted from `{file}` (sha256 {sha256}), a checkpoint of {source}.
The weights are the authors': their licence holds, and the terms of the data they were trained on. Nothing was trained
or measured here.

Estimates describe what is shown and heard, not what a person feels.
"""


def convert(options: ConvertOptions, terminal: Terminal) -> int:
    """The authors' checkpoint as an affectrace model."""
    model, preset, unused = _convert(options.checkpoint, options.source, options.out, options.standardise)
    notes = [] if options.standardise else [SOURCES[options.source].note]
    n_parameters = sum(p.numel() for p in model.parameters())
    terminal.say(f"model: {options.out} ({model.name}, {preset}, {n_parameters:,} parameters)")
    reasons = Counter("the same as another" if "same tensor" in why else why for why in unused.values())
    for why, n in reasons.items():
        terminal.say(f"{n} unused tensors: {why} (named in {options.out / 'config.json'})")
    values = {"folder": str(options.out), "model": model.name, "preset": preset, "parameters": n_parameters}
    terminal.done({**values, "unused": unused, "notes": notes}, *(f"note: {note}" for note in notes))
    return DONE


def _convert(path: Path, source: str, out: Path, standardise: bool) -> tuple[AffectModel, str, dict[str, str]]:
    """Write the authors' checkpoint as a folder: the model, its preset, unused tensors with the reason."""
    from affectrace.inference.run import sequence_config, sequences_dict
    from affectrace.models import checkpoint

    if not path.is_file():
        raise InputError("no such file", where=path, hint="give the checkpoint of the authors' training script")
    if standardise and source != "maven":
        raise InputError(f"{source} standardizes nothing", hint="leave out --standardise")
    if (out / checkpoint.CONFIG).exists() or (out / checkpoint.WEIGHTS).exists():
        raise OutputError("already contains a model", where=out, hint="choose another --out")
    converted = checkpoint.convert(path, source)
    model, preset, about = converted.model, "released", SOURCES[source]
    if source == "maven":
        preset = "released_mlp" if model.config.topology == "none" else "released_beit"
    if standardise:
        weights = model.state_dict()
        model = checkpoint.create(model.name, **vars(model.config) | {"standardise": True}).eval()
        model.load_state_dict(weights)
    sha256 = sha256_of(path)
    origin = {"from": about.repository, "file": path.name, "sha256": sha256, "unused": converted.unused}
    sequences = sequences_dict(sequence_config(model))
    extra = {"converted": origin, "features": about.extractors, "sequences": sequences}
    if source == "maven":  # an utterance at a time, as the authors run it; long ones in pieces
        extra["training"] = {"window": configs.to_dict(WindowScheme.maven(*MAVEN_WINDOW_FRAMES))}
    checkpoint.save(model, out, preset=preset, extra=extra)
    card = CARD.format(model=model.name, preset=preset, file=path.name, sha256=sha256, source=about.repository)
    configs.write_atomic(out / "README.md", card)
    return model, preset, converted.unused


def export_model(options: ExportOptions, terminal: Terminal) -> int:
    """A trained model as ONNX."""
    if len(options.inputs) != 1:
        raise InputError(f"--to onnx takes one checkpoint folder, got {len(options.inputs)}", hint="as run/best")
    from affectrace.inference.export_onnx import export_onnx
    from affectrace.inference.run import TrainedModel
    from affectrace.models.publish import CARD, checkpoint_folder

    folder = checkpoint_folder(options.inputs[0], progress=terminal.progress)
    model, card = TrainedModel.load(folder), folder / CARD
    path = options.out if options.out.suffix == ".onnx" else options.out / f"{model.id.replace('@', '-')}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = export_onnx(
        model, path, n_frames=options.frames, card=card.read_text(encoding="utf-8") if card.is_file() else ""
    )
    terminal.say(f"model: {done.path} (differs from torch by {done.difference:.1g} over {done.checked} frames)")
    for kind, tensors in (("in", done.inputs), ("out", done.outputs)):
        terminal.table("", [kind, "shape"], [[n, " x ".join(map(str, s))] for n, s in tensors.items()])
    terminal.result({**asdict(done), "path": str(done.path), "model": model.id})
    return DONE


def push(options: PushOptions, terminal: Terminal) -> int:
    """A trained model to the Hugging Face Hub."""
    from affectrace.models.publish import push as publish

    private = not options.public
    done = publish(
        options.folder, options.repo_id, private=private, message=options.message, progress=terminal.progress
    )
    terminal.done(asdict(done), f"model: {done.name}", f"page:  {done.url}")
    return DONE


def weights(options: WeightsOptions, terminal: Terminal) -> int:
    """Pretrained weights: list, fetch or verify."""
    known = [s.name for s in store.sources()]
    names = [store.source(n).name for n in options.names] or (known if options.all else store.names_for(options.need))
    if options.action == "list":
        rows = [_weights_row(name) for name in options.names or known]
        columns = ["name", "mb", "licence", "state", "use", "source"]
        terminal.table("", columns, [[row[c] for c in columns] for row in rows])
        terminal.result({"weights": rows})
        return DONE
    if options.action == "fetch":
        rows = [_weights_row(name) for name in names]
        size = "download_mb" if options.origin == "index" else "mb"
        missing = [row for row in rows if row["state"] == "missing"]
        for row in rows:
            todo = f", {row[size]} MB to download" if row in missing else ""
            terminal.say(f"{row['name']}: {row['mb']} MB, {row['state']}{todo}")
        terminal.say(f"to download: {sum(float(str(row[size])) for row in missing):.1f} MB in all")
        hub = options.origin == "hub"
        folders = store.fetch(names, hub=hub, to=options.to, progress=terminal.progress)
        offline = (
            [] if options.to is None else [f"on the other machine: set AFFECTRACE_WEIGHTS to a copy of {options.to}"]
        )
        terminal.done({"fetched": list(map(str, folders))}, *(f"weights: {folder}" for folder in folders), *offline)
        return DONE
    problems = store.verify(names, progress=terminal.progress)
    terminal.done({"problems": [vars(p) for p in problems]}, *([] if problems else ["all files match their hashes"]))
    for problem in problems:
        terminal.error(f"{problem.name}: {problem.folder}: {problem.what}; {problem.hint}")
    return SOME_FAILED if problems else DONE


def _weights_row(name: str) -> dict[str, object]:
    """Weights in the list: sizes on disk and to download, licence, state, use and source."""
    one, here = store.source(name), store.status(name)
    repository, _, revision = one.hub.partition("@")
    packages = [wheel.requirement for wheel in one.wheels] or [one.origin]
    return {
        "name": one.name,
        "mb": f"{one.n_bytes / 1e6:.1f}",
        "download_mb": f"{one.download_bytes / 1e6:.1f}",
        "licence": one.licence,
        "state": here.state,
        "use": one.use,
        "source": ", ".join([*packages, *([f"Hub: {repository} @{revision[:12]}"] if one.hub else [])]),
        "hub": one.hub,
        "what": one.what,
        "files": {member.name: member.sha256 for member in one.members},
        "path": "" if here.path is None else str(here.path),
    }

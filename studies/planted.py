"""The planted-signal study of MAVEN: valence in the words alone, arousal in the voice alone, nothing in the face.

    python studies/planted.py data  --work planted     recordings (affectrace synth) and features, once
    python studies/planted.py tune  --work planted     gaps and modality dropout, on training recordings only
    python studies/planted.py train --work planted     every model with three seeds, scored on the validation split
    python studies/planted.py table --work planted     the table of docs/papers/maven.md

Each stage continues where it stopped. Media are rendered, decoded and measured as any recording's: mesh geometry of the
tracked face (9 columns), prosody (5), MiniLM word vectors (384) of the transcripts.

MAVEN is `.paper()` at widths that fit these features; the single-modality networks are the same network given one
modality. All train on 60 recordings and keep the checkpoint of the best mean CCC on 12 others of the training split;
`tune` compares settings on those 12. The validation split decides nothing. Because a single modality's checkpoint is
chosen by a mean of which one half is chance, the table gives the last epoch's scores as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectrace import metrics
from affectrace.config import write_atomic
from affectrace.datasets.catalog import open_dataset, read_labels
from affectrace.datasets.synthetic import SynthConfig, synthesise
from affectrace.evaluate import evaluate
from affectrace.features.extract import ExtractConfig, extract
from affectrace.features.store import FeatureStore
from affectrace.losses import LossConfig
from affectrace.models.maven import Maven, MavenConfig
from affectrace.models_run import TrainedModel
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.train import TrainConfig, train
from affectrace.windows import WindowScheme, by_utterance

PICTURES_HZ = Fraction(10)  # pictures a second that faces are measured in
FRAMES_HZ = Fraction(5)  # frames a second of the models
FEATURES = {"visual": "mesh-geometry", "audio": "prosody", "text": "minilm-l6"}
WIDTHS = {"visual": 9, "audio": 5, "text": 384}
HELD_OUT = 12  # training recordings that decide about settings and checkpoints
SEEDS = (0, 1, 2)
EPOCHS, PATIENCE = 20, 8  # PATIENCE: validations (one an epoch) without a better one
LR = 1e-3
# How gaps reach a network: left to it ("mask"), or the last row held ("hold"); how often training hides a modality
GRID: dict[str, list[tuple[str, float]]] = {
    "maven": [("mask", 0.0), ("hold", 0.0), ("hold", 0.2)],
    "audio": [("mask", 0.0), ("hold", 0.0)],
    "text": [("mask", 0.0), ("hold", 0.0)],
}


@dataclass(frozen=True)
class Entrant:
    """One row: modalities it is given, further fields of MavenConfig, and its windows."""

    label: str
    modalities: tuple[str, ...]
    fields: Mapping[str, Any]
    window: WindowScheme

    def model(self, modality_dropout: float) -> Maven:
        """Freshly made."""
        return Maven(
            MavenConfig.paper(
                modalities=self.modalities,
                input_dims=tuple(WIDTHS[m] for m in self.modalities),
                frame_modality=self.modalities[0],
                width=64,
                additive_width=32,
                encoder_width=96,
                encoder_depth=2,
                encoder_heads=4,
                head_widths=(64, 32),
                modality_dropout=modality_dropout,
                **self.fields,
            )
        )

    def sequences(self, missing: str) -> SequenceConfig:
        """How features reach it: on frames, words interpolated (12); own clocks where it averages over utterances."""
        if self.fields.get("clock", "frame") != "frame":
            return SequenceConfig(clock="native")
        return SequenceConfig(align="mean", align_by={"text": "linear"}, missing=missing)  # type: ignore[arg-type]


ALL = ("visual", "audio", "text")
PIECES, UTTERANCES = WindowScheme(50, 50), WindowScheme.maven(max_frames=150)
ENTRANTS = {
    "maven": Entrant("MAVEN", ALL, {}, PIECES),
    "visual": Entrant("face alone", ("visual",), {}, PIECES),
    "audio": Entrant("voice alone", ("audio",), {}, PIECES),
    "text": Entrant("words alone", ("text",), {}, PIECES),
    "maven-utterances": Entrant("MAVEN on frames, a window an utterance", ALL, {}, UTTERANCES),
    "maven-clock-utterance": Entrant(
        'MAVEN with `clock="utterance"`, a window an utterance', ALL, {"clock": "utterance"}, UTTERANCES
    ),
    "maven-relative": Entrant('MAVEN with `positions="relative"`', ALL, {"positions": "relative"}, PIECES),
}
REPORTED = ("maven", "visual", "audio", "text", "maven-utterances", "maven-clock-utterance")


def log(work: Path, text: str) -> None:
    """A line on the terminal and in WORK/planted.log."""
    line = f"{time.strftime('%H:%M:%S')} {text}"
    print(line, flush=True)
    with (work / "planted.log").open("a") as file:
        file.write(line + "\n")


# ---- data


def make_data(work: Path, recordings: int, seconds: float, seed: int) -> None:
    """Recordings and their features."""

    def tell(event: ProgressEvent) -> None:
        if event.stage == "recordings":
            log(work, f"{event.stage} {event.done}/{event.total}")

    data = work / "data"
    if not data.exists():
        config = SynthConfig(
            recordings=recordings,
            seconds=seconds,
            seed=seed,
            size=128,
            valence_in=("words",),
            arousal_in=("voice",),
            two_person=0.0,
            odd_rates=False,
            odd_rows=False,
            validation=0.25,
            test=0.0,
            crops=False,
        )
        log(work, "; ".join(synthesise(data, config, progress=tell).lines()))
    manifest, _ = open_dataset(data)
    config = ExtractConfig(fps=PICTURES_HZ)
    done = extract(list(manifest), work / "features", list(FEATURES.values()), config, progress=tell)
    log(work, f"features: {done.made} made, {done.kept} kept, failed {done.failed}")


class Data:
    """The recordings of a work folder, opened for an entrant."""

    def __init__(self, work: Path) -> None:
        self.manifest, _ = open_dataset(work / "data")
        self.store = FeatureStore(work / "features")
        members = self.manifest.of_split("train")
        self.parts = {
            "training": members[:-HELD_OUT],
            "held out": members[-HELD_OUT:],
            "validation": self.manifest.of_split("validation"),
        }
        self.labels = {r.id: read_labels(self.manifest, r) for part in self.parts.values() for r in part}

    def open(self, part: str, entrant: Entrant, missing: str) -> list[Sequence]:
        """Sequences of a part."""
        return [self._open(r, entrant, missing) for r in self.parts[part]]

    def _open(self, recording: Recording, entrant: Entrant, missing: str) -> Sequence:
        labels = self.labels[recording.id]
        clock = Timeline.regular(int(labels.timeline.end_s * FRAMES_HZ), FRAMES_HZ)
        inputs = {m: self.store.get(FEATURES[m], recording.id) for m in entrant.modalities}
        return Sequence(
            recording.id, clock, inputs, labels, self.utterances(recording), config=entrant.sequences(missing)
        )

    def utterances(self, recording: Recording) -> tuple[tuple[float, float], ...]:
        """(start, end) seconds of each."""
        from affectrace.media.transcript import read_transcript

        assert recording.transcript is not None
        return tuple((u.start_s, u.end_s) for u in read_transcript(recording.transcript).utterances)


# ---- training


def run(work: Path, data: Data, name: str, seed: int, setting: tuple[str, float]) -> tuple[Path, float]:
    """Train one entrant; returns its best checkpoint and that one's mean CCC on the recordings held out."""
    missing, hidden = setting
    entrant = ENTRANTS[name]
    out = work / "runs" / (f"{name}-{seed}-{LR:g}-{missing}-{EPOCHS}" + (f"-{hidden:g}" if hidden else ""))
    found = out / "best" / "found.json"
    if found.is_file():
        return out / "best", float(json.loads(found.read_text())["mean_ccc"])
    config = TrainConfig(
        epochs=EPOCHS,
        patience=PATIENCE,
        batch_size=16 if entrant.window is PIECES else 48,  # as many frames a step
        window=entrant.window,
        loss=LossConfig(kind="mixture", ccc_weight=1.0),
        lr=LR,
        weight_decay=1e-2,  # (3.8)
        warmup_epochs=2.0,
        validations_per_epoch=1,
        seed=seed,
        accelerator="cpu",
        threads=1,
    )
    torch.manual_seed(seed)
    began = time.monotonic()
    if out.exists():
        import shutil

        shutil.rmtree(out)  # stopped half-way
    done = train(
        entrant.model(hidden),
        data.open("training", entrant, missing),
        data.open("held out", entrant, missing),
        out,
        config,
    )
    log(work, f"{out.name}: {done.best_mean_ccc:.3f} held out, step {done.best_step}, {time.monotonic() - began:.0f} s")
    write_atomic(found, json.dumps({"mean_ccc": done.best_mean_ccc}) + "\n")
    return done.best, done.best_mean_ccc


def tune(work: Path) -> None:
    """The setting of highest mean CCC on the recordings held out, for each kind of network by itself."""
    data, chosen = Data(work), {}
    for name, settings in GRID.items():
        tried = [(run(work, data, name, 0, setting)[1], setting) for setting in settings]
        best = max(tried, key=lambda t: t[0])[1]
        chosen[name] = {"setting": best, "tried": {f"{gaps} {hidden:g}": ccc for ccc, (gaps, hidden) in tried}}
    write_atomic(work / "chosen.json", json.dumps(chosen, indent=1) + "\n")
    log(work, f"chosen: { {k: v['setting'] for k, v in chosen.items()} }")


def train_all(work: Path, names: list[str]) -> None:
    """Every entrant with every seed, and its scores on the validation split."""
    data, chosen = Data(work), json.loads((work / "chosen.json").read_text())
    for seed in SEEDS:
        for name in names:
            gaps, hidden = chosen[name if name in GRID else "maven"]["setting"]
            hidden = hidden if len(ENTRANTS[name].modalities) > 1 else 0.0
            path = work / "scores" / f"{name}-{seed}.json"
            if path.is_file():
                continue
            best, _ = run(work, data, name, seed, (gaps, hidden))
            last = score(data, name, best.with_name("last"), gaps)
            scores = score(data, name, best, gaps) | {f"{k}_last": last[k] for k in ("valence", "arousal", "mean")}
            write_atomic(path, json.dumps(scores, indent=1) + "\n")
            log(work, f"{name} {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))


def score(data: Data, name: str, best: Path, missing: str) -> dict[str, float]:
    """Pooled CCCs on the validation split, and those of what is left after each utterance's own mean is taken away."""
    model, entrant = TrainedModel.load(best), ENTRANTS[name]
    model = replace(model, sequences=entrant.sequences(missing))
    traces, within = [], []
    for recording, sequence in zip(data.parts["validation"], data.open("validation", entrant, missing), strict=True):
        labels = data.labels[recording.id]
        trace = model.predict(sequence).resample(labels.timeline, how="linear")
        traces.append(trace)
        within.append(centred(trace, labels, [end for _, end in sequence.utterances]))
    pooled = evaluate([data.labels[r.id] for r in data.parts["validation"]], traces, n_draws=10).pooled
    apart = metrics.score_pooled(within)
    return {
        "valence": pooled.valence.ccc,
        "arousal": pooled.arousal.ccc,
        "mean": pooled.mean_ccc,
        "valence_within": apart.valence.ccc,
        "arousal_within": apart.arousal.ccc,
        "parameters": float(sum(p.numel() for p in model.model.parameters())),
    }


def centred(trace: Trace, labels: Trace, ends_s: list[float]) -> metrics.Pair:
    """Prediction and labels without the mean of each utterance's segment."""
    mask = labels.valid & trace.valid
    x, y = np.nan_to_num(trace.values), np.nan_to_num(labels.values)
    for part in by_utterance(labels.timeline, ends_s):
        some = mask[part]
        if some.any():
            x[part] -= x[part][some].mean(axis=0)
            y[part] -= y[part][some].mean(axis=0)
    return x, y, mask


# ---- table


def table(work: Path) -> None:
    """Mean and range over seeds, as Markdown; then what the study expects, and whether it holds."""
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name in ENTRANTS:
        files = [work / "scores" / f"{name}-{seed}.json" for seed in SEEDS]
        found = [json.loads(f.read_text()) for f in files if f.is_file()]
        if found:
            rows[name] = {k: np.array([f[k] for f in found]) for k in found[0]}
    print("| network | parameters | valence | arousal | mean | arousal within utterances | last epoch: V, A |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [f"{row[k].mean():.3f} ({row[k].min():.3f} to {row[k].max():.3f})" for k in ("valence", "arousal")]
        cells += [f"{row['mean'].mean():.3f} ({row['mean'].min():.3f} to {row['mean'].max():.3f})"]
        cells += [
            f"{row['arousal_within'].mean():.3f}",
            f"{row['valence_last'].mean():.3f}, {row['arousal_last'].mean():.3f}",
        ]
        size = f"{row['parameters'][0] / 1e3:.0f} k"
        seeds = f"{len(row['mean'])} seed{'s' * (len(row['mean']) > 1)}"
        print(f"| {ENTRANTS[name].label} ({seeds}) | {size} | {' | '.join(cells)} |")
    singles = [rows[m] for m in ALL if m in rows]
    if "maven" in rows and singles:
        for key in ("valence", "arousal", "mean", "valence_last", "arousal_last", "mean_last"):
            best = max(float(s[key].mean()) for s in singles)
            what = key.replace("_last", " at the last epoch")
            print(f"MAVEN minus the best single modality, {what}: {rows['maven'][key].mean() - best:+.3f}")
    chosen = json.loads((work / "chosen.json").read_text())
    print("chosen:", {k: (v["setting"], {a: round(b, 3) for a, b in v["tried"].items()}) for k, v in chosen.items()})
    print("oracle:", json.loads((work / "data" / "synth.json").read_text())["oracle"])


def main() -> None:
    """The stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="+", choices=["data", "tune", "train", "table"])
    parser.add_argument("--work", type=Path, default=Path("planted"), help="folder for everything")
    parser.add_argument("--recordings", type=int, default=96, help="videos; three quarters of them are trained on")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of each")
    parser.add_argument("--seed", type=int, default=5, help="of the recordings")
    parser.add_argument("--only", nargs="*", default=list(REPORTED), choices=list(ENTRANTS), help="networks to train")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for stage in options.stage:
        if stage == "data":
            make_data(options.work, options.recordings, options.seconds, options.seed)
        elif stage == "tune":
            tune(options.work)
        elif stage == "train":
            train_all(options.work, options.only)
        else:
            table(options.work)


if __name__ == "__main__":
    main()

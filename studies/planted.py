"""Planted-signal study of MAVEN: valence in the words only, arousal in the voice only, nothing in the face.

    python studies/planted.py data  --work planted     recordings, features, ratings
    python studies/planted.py tune  --work planted     gaps and modality dropout, on training recordings only
    python studies/planted.py train --work planted     every network with three seeds, scored on the test recordings
    python studies/planted.py table --work planted     the table of docs/papers/maven.md

Each stage continues where it stopped, and prints the commands it runs: `affectrace synth`, `extract`, `import`, `train`
and `evaluate`. Media files are rendered, decoded and measured like any recording: mesh geometry of the tracked face (9
columns), prosody (5), MiniLM word vectors (384) of the transcripts. The labels are imported as ratings at 5 Hz, the
mean of the truth in each fifth of a second, which are therefore the frames of the networks.

MAVEN is `.paper()` at widths that fit these features; the single-modality networks are the same network given one
modality. All are trained on 60 recordings, and the checkpoint with the best mean CCC on 12 others is kept; `tune`
compares settings on those 12. The 24 test recordings are only scored. The table also has the scores of the last epoch,
because for a single modality the selection depends by half on the dimension that the modality does not contain.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROWS_HZ = 5  # ratings, and therefore frames, per second
PICTURES_HZ = 10  # video frames per second in which faces are measured
FEATURES = {"visual": "mesh-geometry", "audio": "prosody", "text": "minilm-l6"}
PLANTED = ["--valence-in", "text", "--arousal-in", "audio", "--size", "128", "--two-person", "0", "--no-odd-rates"]
PLANTED += ["--no-odd-rows", "--no-crops", "--validation", "0.25", "--test", "0"]
NETWORK = ["width=64", "additive_width=32", "encoder_width=96", "encoder_depth=2", "encoder_heads=4"]
NETWORK += ["head_widths=[64,32]"]
TRAINING = ["--recipe", "none", "--patience", "8", "--lr", "1e-3", "--weight-decay", "0.01", "--warmup-epochs", "2"]
TRAINING += ["--loss.kind", "mixture", "--loss.ccc-weight", "1", "--validations-per-epoch", "1"]
TRAINING += ["--accelerator", "cpu", "--threads", "1"]
PIECES = ["--window.size", "50", "--window.stride", "50", "--batch-size", "16"]  # of 10 s
UTTERANCES = ["--window.utterances", "--window.size", "150", "--window.stride", "150", "--batch-size", "48"]
# Gaps: masked, or filled with the last row ("hold"); probability of modality dropout
GRID: dict[str, list[tuple[str, float]]] = {
    "maven": [("mask", 0.0), ("hold", 0.0), ("hold", 0.2)],
    "audio": [("mask", 0.0), ("hold", 0.0)],
}


@dataclass(frozen=True)
class Entrant:
    """One row of the table: its modalities, further fields of its configuration, and its windows."""

    label: str
    modalities: tuple[str, ...]
    fields: tuple[str, ...] = ()
    window: tuple[str, ...] = tuple(PIECES)


ALL = tuple(FEATURES)
ENTRANTS = {
    "maven": Entrant("MAVEN", ALL),
    "visual": Entrant("face alone", ("visual",)),
    "audio": Entrant("voice alone", ("audio",)),
    "text": Entrant("words alone", ("text",)),
    "maven-mean": Entrant("MAVEN with `align=mean`", ALL, ("align=mean",)),
    "audio-mean": Entrant("voice alone with `align=mean`", ("audio",), ("align=mean",)),
    "maven-utterances": Entrant("MAVEN on frames, a window an utterance", ALL, (), tuple(UTTERANCES)),
    "maven-clock-utterance": Entrant(
        "MAVEN with `clock=utterance`, a window an utterance", ALL, ("clock=utterance",), tuple(UTTERANCES)
    ),
}


def affectrace(*arguments: object) -> dict[str, Any]:
    """One command, shown as it is typed; what it says with --json."""
    words = [str(a) for a in arguments]
    print("$ affectrace", shlex.join(words), flush=True)
    command = [sys.executable, "-m", "affectrace", *words, "--quiet", "--json"]
    one_core = os.environ | {"OMP_NUM_THREADS": "1"}
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=one_core).stdout)
    return told


# ---- data


def make_data(work: Path, args: argparse.Namespace) -> None:
    """Recordings, their features, and the data set of ratings."""
    recordings = work / "recordings"
    if not recordings.exists():
        size = ["--recordings", args.recordings, "--seconds", args.seconds, "--seed", args.seed]
        affectrace("synth", recordings, *size, *PLANTED)
    names = ",".join(FEATURES.values())
    affectrace("extract", recordings, "--features", names, "--fps", PICTURES_HZ, "--out", work / "features")
    if not (work / "data" / "manifest.json").is_file():
        write_ratings(recordings, work / "ratings", args.held_out)
        affectrace("import", work / "ratings" / "ratings.json", "--out", work / "data")


def write_ratings(recordings: Path, out: Path, held_out: int) -> None:
    """OUT/<id>.csv: a row for each fifth of a second that is labelled all through; OUT/ratings.json describes them.

    The last `held_out` training recordings become the validation split, the validation recordings the test split.
    """
    from affectrace.datasets import open_dataset

    manifest, _ = open_dataset(recordings)
    training = [r.id for r in manifest.of_split("train")]
    splits = dict.fromkeys(training[:-held_out], "train") | dict.fromkeys(training[-held_out:], "validation")
    splits |= dict.fromkeys((r.id for r in manifest.of_split("validation")), "test")
    out.mkdir(parents=True, exist_ok=True)
    for name in splits:
        truth = np.genfromtxt(recordings / "truth" / f"{name}.csv", delimiter=",", names=True)
        row = np.floor(truth["time_s"] * ROWS_HZ + 1e-6).astype(int)
        with (out / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["valence", "arousal"])
            for k in range(row[-1] + 1):
                rated = truth[row == k]
                whole = len(rated) and rated["labelled"].all()
                table.writerow([f"{rated[d].mean():.6f}" if whole else "" for d in ("valence", "arousal")])
    described = {
        "name": "planted-signals",
        "labels": {"path": "{id}.csv", "rate_hz": str(ROWS_HZ)},
        "recordings": [{"id": name, "split": split} for name, split in splits.items()],
    }
    (out / "ratings.json").write_text(json.dumps(described, indent=1) + "\n")


# ---- training


def run(work: Path, name: str, seed: int, setting: tuple[str, float], epochs: int) -> tuple[Path, float]:
    """Train one entrant; returns its folder and its best mean CCC on the recordings held out."""
    missing, hidden = setting
    entrant = ENTRANTS[name]
    hidden = hidden if len(entrant.modalities) > 1 else 0.0
    out = work / "runs" / f"{name}-{seed}-{missing}-{hidden:g}"
    done = out / "done.json"
    if not done.is_file():
        given = [*entrant.window, *TRAINING, "--epochs", epochs, "--seed", seed, "--missing", missing]
        given += ["--set", *NETWORK, *entrant.fields, f"modality_dropout={hidden:g}"]
        given += ["--resume"] if (out / "resume.pt").is_file() else []
        features = [f"{m}={FEATURES[m]}" for m in entrant.modalities]
        told = affectrace("train", "maven", *stored(work), "--features", *features, "--out", out, *given)
        done.write_text(json.dumps(told, indent=1) + "\n")
    return out, float(json.loads(done.read_text())["best_mean_ccc"])


def stored(work: Path) -> list[object]:
    """Where the data set and its features are."""
    return ["--data", work / "data", "--store", work / "features"]


def tune(work: Path, epochs: int) -> None:
    """The setting of highest mean CCC on the recordings held out, for each kind of network by itself."""
    chosen = {}
    for name, settings in GRID.items():
        tried = [(run(work, name, 0, setting, epochs)[1], setting) for setting in settings]
        best = max(tried, key=lambda t: t[0])[1]
        chosen[name] = {"setting": best, "tried": {f"{gaps} {hidden:g}": ccc for ccc, (gaps, hidden) in tried}}
    (work / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")
    print("chosen:", {k: v["setting"] for k, v in chosen.items()}, flush=True)


def train_all(work: Path, args: argparse.Namespace) -> None:
    """Every entrant with every seed, and its scores on the test split."""
    chosen = json.loads((work / "chosen.json").read_text())
    for seed in range(args.seeds):
        for name in args.only:
            path = work / "scores" / f"{name}-{seed}.json"
            if path.is_file():
                continue
            setting = chosen["audio" if ENTRANTS[name].modalities == ("audio",) else "maven"]["setting"]
            out, _ = run(work, name, seed, setting, args.epochs)
            scores = scored(work, out / "best") | {f"{k}_last": v for k, v in scored(work, out / "last").items()}
            scores |= within_utterances(work, out / "best")
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(scores, indent=1) + "\n")
            print(f"{name} {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)


def scored(work: Path, folder: Path) -> dict[str, float]:
    """Pooled CCCs on the test split."""
    pooled = affectrace("evaluate", folder, *stored(work), "--split", "test", "--draws", 10)["pooled"]
    return {"valence": pooled["ccc_valence"], "arousal": pooled["ccc_arousal"], "mean": pooled["mean_ccc"]}


def within_utterances(work: Path, folder: Path) -> dict[str, float]:
    """CCCs of what is left after each utterance's own mean is taken from prediction and label; and the size."""
    from affectrace import metrics
    from affectrace.datasets import open_dataset
    from affectrace.features.store import FeatureStore
    from affectrace.inference.run import TrainedModel
    from affectrace.sequences import open_sequences
    from affectrace.sequences.config import by_utterance

    model, store = TrainedModel.load(folder), FeatureStore(work / "features")
    manifest, _ = open_dataset(work / "data")
    pairs = []
    for sequence in open_sequences(manifest.of_split("test"), manifest, store, model.features, model.sequences):
        trace, labels = model.predict(sequence), sequence.labels
        assert labels is not None
        mask = labels.valid & trace.valid
        x, y = np.nan_to_num(trace.values), np.nan_to_num(labels.values)
        spoken = store.get(FEATURES["text"], sequence.recording_id).utterances
        for part in by_utterance(labels.timeline, [end for _, end in spoken]):
            some = mask[part].all(axis=1)
            if some.any():
                x[part] -= x[part][some].mean(axis=0)
                y[part] -= y[part][some].mean(axis=0)
        pairs.append((x, y, mask))
    apart = metrics.score_pooled(pairs)
    size = sum(p.numel() for p in model.model.parameters())
    return {"valence_within": apart.valence.ccc, "arousal_within": apart.arousal.ccc, "parameters": float(size)}


# ---- table


def table(work: Path) -> None:
    """Mean and range over seeds, as Markdown; then MAVEN against the best single modality, and what was chosen."""
    rows: dict[str, Mapping[str, np.ndarray]] = {}
    for name in ENTRANTS:
        found = [json.loads(f.read_text()) for f in sorted((work / "scores").glob(f"{name}-[0-9]*.json"))]
        if found:
            rows[name] = {k: np.array([f[k] for f in found]) for k in found[0]}
    print("| network | parameters | valence | arousal | mean | arousal within utterances | last epoch: V, A |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [
            f"{row[k].mean():.3f} ({row[k].min():.3f} to {row[k].max():.3f})" for k in ("valence", "arousal", "mean")
        ]
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
    print("oracle:", json.loads((work / "recordings" / "synth.json").read_text())["oracle"])


def main() -> None:
    """The stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="+", choices=["data", "tune", "train", "table"])
    parser.add_argument("--work", type=Path, default=Path("planted"), help="folder for everything")
    parser.add_argument("--recordings", type=int, default=96, help="videos; a quarter of them are the test split")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of each")
    parser.add_argument("--seed", type=int, default=5, help="of the recordings")
    parser.add_argument("--held-out", type=int, default=12, help="training recordings that settings are chosen on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each network")
    parser.add_argument("--only", nargs="*", default=list(ENTRANTS), choices=list(ENTRANTS), help="networks to train")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stage:
        if stage == "data":
            make_data(args.work, args)
        elif stage == "tune":
            tune(args.work, args.epochs)
        elif stage == "train":
            train_all(args.work, args)
        else:
            table(args.work)


if __name__ == "__main__":
    main()

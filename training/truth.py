"""Accuracy of the default model on people's ratings: measured, compared with docs/truth.json, drawn into the docs.

    python training/truth.py                      measure; exit code 1 if a figure differs by more than .005
    python training/truth.py --sets face words    only these sets
    python training/truth.py --update "CHANGE"    measure all sets and write the row of this version and its weights
    python training/truth.py --draw               redraw the tables of docs/ from docs/truth.json; needs no data

Nothing is trained: the shipped weights are scored. Data is read from AFFECTRACE_REAL_DATA, by default ../shared/data
beside the repository; a set whose data is missing is skipped with the reason. docs/truth.json keeps one row for every
version and its weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scoring import (
    CORRUPTIONS,
    DATA,
    DIMENSIONS,
    EXPRESSIONS,
    Figures,
    Network,
    agreements,
    bootstrapped,
    emodb,
    face_part,
    ferplus,
    one_voter,
    score_face,
    score_voice,
    voters,
)

import affectrace
from affectrace import config, weights
from affectrace.features.face import ExpressionNetwork

ROOT = Path(__file__).resolve().parent.parent
TRUTH, PAGE = ROOT / "docs" / "truth.json", ROOT / "docs" / "truth.md"
CARDS = (ROOT / "docs" / "cards" / "zero-shot.md", ROOT / "docs" / "cards" / "words-emobank.md")
TOLERANCE = 0.005


# ---- the shipped parts


def face_figures() -> Figures:
    """The expression network by itself, and one voter against the others."""
    pictures, votes = ferplus()
    one, others, picture = one_voter(votes)
    return score_face(*shipped_face(), pictures, votes) | agreements("voter", one, others, picture)


def shipped_face() -> tuple[tuple[str, ...], Network]:
    """The names of the default model's expressions, and its network on 48 x 48 crops."""
    return face_part(ExpressionNetwork.load())


def predict_figures() -> Figures:
    """300 pictures, evenly spaced in the set, five times as large in a grey frame of 480 x 480, one recording each."""
    pictures, votes = ferplus()
    some = np.linspace(0, len(pictures) - 1, 300).astype(int)
    model, values = affectrace.load(), np.full((len(some), 2), np.nan)
    with tempfile.TemporaryDirectory() as folder:
        for row, i in zip(values, some, strict=True):
            frame = Image.new("L", (480, 480), 128)
            frame.paste(Image.fromarray(pictures[i]).resize((240, 240), Image.Resampling.BICUBIC), (120, 120))
            frame.convert("RGB").save(path := Path(folder) / "face.png")
            row[:] = model.predict(path, modalities=("visual",)).values[0]
    found = {"predict.found": bootstrapped(np.mean, np.isfinite(values[:, 0]))}
    return found | agreements("predict", values, voters(votes[some])[0])


def voice_figures() -> Figures:
    """The voice part of `predict`, with the head that was fitted without the speaker."""
    from voice_emodb import voice_without

    return score_voice(voice_without, emodb())


def words_figures() -> Figures:
    """The words head on EmoBank's test split, each sentence by itself: as written, and as plain recognition writes."""
    from words_emobank import emobank_file, read_emobank, unpunctuated

    from affectrace.models.text_head import WordsHead

    head, split = WordsHead.load(weights.directory("minilm-l6")), read_emobank(emobank_file(), "test")
    ratings, found = split.labels[:, :2].astype(float), Figures()
    for name, texts in (("words", split.texts), ("words.plain", [unpunctuated(text) for text in split.texts])):
        found |= agreements(name, head.predict(texts).astype(float), ratings, which="r ccc rmse")
    return found


# ---- the rows of docs/truth.json


SETS: Mapping[str, tuple[Callable[[], Figures], str, str]] = {
    "face": (face_figures, "ferplus/validation.npz", "FER+ validation"),
    "predict": (predict_figures, "ferplus/validation.npz", "FER+ validation, 300 pictures"),
    "voice": (voice_figures, "emodb/emodb.csv", "EMO-DB, whole utterances"),
    "words": (words_figures, "emobank/emobank.csv", "EmoBank, test split"),
}
"""Set -> what measures it, the file it reads, the data in words."""


def parts() -> dict[str, str]:
    """Name -> sha256 of all weights that `predict` uses."""
    return {name: weights.sha256(name) for name in sorted(weights.names_for("predict"))}


def measured(name: str) -> dict[str, Any]:
    """One set: its data, the command and the figures, rounded to four digits."""
    rounded = {
        key: {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(figure).items() if v is not None}
        for key, figure in SETS[name][0]().items()
    }
    return {"data": SETS[name][2], "command": f"python training/truth.py --sets {name}", "figures": rounded}


def figures_of(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All figures of a row."""
    return {key: figure for found in row["sets"].values() for key, figure in found["figures"].items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs by more than the tolerance between the figures of two sets."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key not in new or key not in old:
            lines.append(f"{key}: {'no longer measured' if key in old else 'not in docs/truth.json'}")
        elif round(abs(new[key]["value"] - old[key]["value"]), 4) > TOLERANCE or new[key]["n"] != old[key]["n"]:
            was, now = ("{value:.4f} (n {n})".format(**figures[key]) for figures in (old, new))
            lines.append(f"{key}: {now}, in docs/truth.json {was}")
    return lines


# ---- the tables of docs/

HEADLINES = {
    "face.accuracy": "face: accuracy",
    "face.ccc_valence": "CCC valence",
    "face.ccc_arousal": "CCC arousal",
    "predict.ccc_valence": "`predict`: CCC valence",
    "predict.ccc_arousal": "CCC arousal",
    "voice.auc": "voice: AUC",
    "voice.ccc_valence": "CCC valence",
    "voice.ccc_arousal": "CCC arousal",
    "words.r_valence": "words: r valence",
    "words.r_arousal": "r arousal",
}
"""Figure -> its column in the table of versions."""


def tables(row: Mapping[str, Any]) -> dict[str, str]:
    """Mark -> the table drawn there, from the newest row."""
    found = figures_of(row)

    def cell(key: str) -> str:
        f = found.get(key)
        interval = f" [{number(f['low'])}, {number(f['high'])}]" if f and "low" in f else ""
        return "" if not key else "-" if f is None else number(f["value"]) + interval

    def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
        """Rows: a label and the ids of figures; n is the first one's."""
        lines = [["", "n", *columns], ["---"] * (len(columns) + 2)]
        for label, keys in rows:
            n = next((str(found[key]["n"]) for key in keys if key in found), "-")
            lines.append([label, n, *map(cell, keys)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def both(name: str, *measures: str) -> list[str]:
        return [f"{name}.{measure}_{dimension}" for measure in measures for dimension in DIMENSIONS]

    r_ccc = ("r valence", "r arousal", "CCC valence", "CCC arousal")
    return {
        "face": table(
            ("accuracy", *r_ccc),
            [
                ("face network on the picture", ["face.accuracy", *both("face", "r", "ccc")]),
                ("`predict` on the picture in a frame", ["", *both("predict", "r", "ccc")]),
                ("one voter against the others", ["", *both("voter", "r", "ccc")]),
                ("spread of the votes", ["", *both("face.spread", "r"), "", ""]),
            ],
        ),
        "expressions": table(("recognised",), [(e, [f"face.recall.{e}"]) for e in EXPRESSIONS]),
        "corruptions": table(
            ("accuracy",),
            [(what, [f"face.accuracy.{name}"]) for name, (what, _) in CORRUPTIONS.items()],
        ),
        "voice": table(
            ("AUC of arousal", *r_ccc),
            [
                ("whole utterances", ["voice.auc", *both("voice", "r", "ccc")]),
                ("their first second", ["voice.first_s.auc", *both("voice.first_s", "r", "ccc")]),
            ],
        ),
        "level": table(
            ("mean valence", "mean arousal", "mean change", "largest change"),
            [
                ("neutral utterances", ["voice.neutral_valence", "voice.neutral_arousal", "", ""]),
                ("the same at -20 dB", ["", "", "voice.level_change", "voice.level_largest"]),
            ],
        ),
        "words": table(
            (*r_ccc, "RMSE valence", "RMSE arousal"),
            [
                ("as written", both("words", "r", "ccc", "rmse")),
                ("without case and punctuation", both("words.plain", "r", "ccc", "rmse")),
            ],
        ),
    }


def number(x: float) -> str:
    """.753 for 0.753."""
    return f"{x:.3f}".replace("0.", ".", 1) if abs(x) < 0.9995 else f"{x:.3f}"


def versions(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of versions, one line per row."""
    lines = [["version", "measured", "change", *HEADLINES.values()], ["---"] * (len(HEADLINES) + 3)]
    for row in rows:
        found = figures_of(row)
        values = [number(found[key]["value"]) if key in found else "-" for key in HEADLINES]
        lines.append([row["version"], row["date"], row["change"], *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def drawn(rows: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """Every page with its tables between `<!-- truth NAME -->` and `<!-- /truth -->` as the rows make them."""
    blocks, pages = {"versions": versions(rows), **tables(rows[-1])}, {}
    for path in (PAGE, *CARDS):
        head, *pieces = path.read_text(encoding="utf-8").split("<!-- truth ")
        for piece in pieces:
            name, rest = piece.split(" -->", 1)
            head += f"<!-- truth {name} -->\n\n{blocks[name]}\n\n<!-- /truth -->" + rest.split("<!-- /truth -->", 1)[1]
        pages[path] = head
    return pages


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the pages."""
    for path, text in drawn(rows).items():
        config.write_atomic(path, text)


def main() -> int:
    """Measure and compare, update or draw; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--update", metavar="CHANGE", help="write the row of this version; what changed, in a few words"
    )
    parser.add_argument("--draw", action="store_true", help="redraw the tables from docs/truth.json")
    args = parser.parse_args()
    rows = json.loads(TRUTH.read_text(encoding="utf-8"))["rows"] if TRUTH.exists() else []
    if args.draw:
        draw(rows)
        return 0
    start, missing = time.monotonic(), [name for name in args.sets if not (DATA / SETS[name][1]).is_file()]
    for name in missing:
        print(f"{name}: skipped, {DATA / SETS[name][1]} is not there; AFFECTRACE_REAL_DATA names the data folder")
    if args.update is not None and (missing or set(args.sets) != set(SETS) or not args.update.strip()):
        print("a row needs every set and a few words on what changed: make truth UPDATE='...'; nothing was written")
        return 1
    names = [name for name in args.sets if name not in missing]
    with ProcessPoolExecutor(2) as pool:
        sets = dict(zip(names, pool.map(measured, names), strict=True))
    new = {
        "version": affectrace.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "change": args.update,
        "weights": parts(),
    }
    same = bool(rows) and all(rows[-1][key] == new[key] for key in ("version", "weights"))
    wrong = [] if same else ["this version or its weights have no row; write it with make truth UPDATE='WHAT CHANGED'"]
    for name, found in sets.items():
        wrong += differences(rows[-1]["sets"][name]["figures"] if rows else {}, found["figures"])
        for key, figure in found["figures"].items():
            interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if "low" in figure else ""
            print(f"{key:28}{figure['value']:8.4f}{interval}  n {figure['n']}")
    print("\n".join([*wrong, ""]), end="")
    print(f"{len(names)} of {len(SETS)} sets in {time.monotonic() - start:.0f} s; {len(wrong)} differences")
    if args.update is None:
        return bool(wrong)
    rows = [*(rows[:-1] if same else rows), new | {"sets": sets}]
    config.write_atomic(TRUTH, json.dumps({"tolerance": TOLERANCE, "rows": rows}, indent=1) + "\n")
    draw(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

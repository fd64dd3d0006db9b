"""What `affectrace evaluate --windows` adds: a causal model's carried state beside overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectrace.cli.terminal import Terminal

if TYPE_CHECKING:
    from affectrace.inference.carrying import Stretch, Ways
    from affectrace.inference.run import TrainedModel
    from affectrace.recording import Recording
    from affectrace.sequences import Sequence as Recorded


def ways_of(
    folder: Path,
    windows: str,
    recordings: Sequence[Recording],
    opened: Callable[[TrainedModel, Recording], Recorded],
    *,
    device: str,
    terminal: Terminal,
) -> Ways:
    """Predict both ways; opened: (model, recording) -> the recording as the model reads it."""
    from affectrace.inference.carrying import compare_ways
    from affectrace.inference.run import TrainedModel
    from affectrace.sequences.config import WindowScheme

    scheme = WindowScheme.parse(windows)
    model = TrainedModel.load(folder, device=device)
    sequences = [opened(model, recording) for recording in recordings]
    return compare_ways(model, sequences, scheme, progress=terminal.progress)


def tell_ways(found: Ways, terminal: Terminal) -> None:
    """The table, a row for all frames and one for each stretch."""
    rows = [[_frames(s), s.n_frames, *s.apart, s.carried.mean_ccc, s.windows.mean_ccc] for s in found.stretches]
    whole = found.whole
    rows.append(["all", whole.n_frames, *whole.apart, whole.carried.mean_ccc, whole.windows.mean_ccc])
    terminal.table(
        "",
        [
            "frames before",
            "frames",
            "apart: valence",
            "apart: arousal",
            "mean CCC, carried state",
            f"mean CCC, windows {found.scheme.size}:{found.scheme.stride}",
        ],
        rows,
    )
    trained = "" if found.trained_frames is None else f"; trained on windows of {found.trained_frames} frames"
    terminal.say(
        f"carried state and windows lie {found.largest[0]:.3f} (valence) and {found.largest[1]:.3f} (arousal) apart at "
        f"most{trained}"
    )


def _frames(stretch: Stretch) -> str:
    return f"{stretch.first} and more" if stretch.last is None else f"{stretch.first} to {stretch.last - 1}"

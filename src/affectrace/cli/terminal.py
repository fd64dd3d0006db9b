"""Terminal output: messages, progress, tables and JSON; rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from affectrace.progress import ProgressEvent

PLAIN_EVERY_S = 5.0
"""Seconds between plain progress lines (ours)."""
LONGEST_WORD = 24
"""Characters above which a table breaks a word (ours)."""
_OF_DIMENSION = re.compile("valence|arousal")


class _Stage(NamedTuple):
    """Plain progress of one stage and item: start, amount at the start, latest amount, time of the last line."""

    began_s: float
    first: float
    last: float
    shown_s: float | None


class Terminal:
    """Prints messages and progress to stderr, results to stdout.

    quiet: errors only. as_json: results as one JSON object, no tables.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False, err: TextIO | None = None) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._err = err or sys.stderr
        self._stages: dict[tuple[str, str], _Stage] = {}
        self._bars: dict[tuple[str, str], Any] = {}
        self._live: Any = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the progress display."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._bars.clear()

    def progress(self, event: ProgressEvent) -> None:
        """The progress hook of the library."""
        if self.quiet:
            return
        if self._err.isatty():
            self._show_bar(event)
        else:
            self._show_line(event)

    def _show_bar(self, event: ProgressEvent) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        if self._live is None:
            text, amount = TextColumn("{task.description}"), TextColumn("{task.fields[amount]}")
            columns = (text, BarColumn(bar_width=28), amount, TimeElapsedColumn(), TimeRemainingColumn())
            self._live = Progress(*columns, console=Console(file=self._err), transient=True)
            self._live.start()
        key = (event.stage, event.item)
        if key not in self._bars:
            self._bars[key] = self._live.add_task(" ".join(key).strip(), total=event.total, amount="")
        self._live.update(self._bars[key], completed=event.done, total=event.total, amount=_amount(event))
        if event.total is not None and event.done >= event.total:
            self._live.remove_task(self._bars.pop(key))

    def _show_line(self, event: ProgressEvent) -> None:
        key, now = (event.stage, event.item), time.monotonic()
        stage = self._stages.get(key)
        if stage is None or event.done < stage.last:  # new, or the same stage again
            stage = _Stage(now, event.done, event.done, None)
        ended = event.total is not None and event.done >= event.total
        shown_s = stage.began_s if stage.shown_s is None else stage.shown_s
        show = now - shown_s >= PLAIN_EVERY_S or (ended and stage.shown_s is not None)
        self._stages[key] = stage._replace(last=event.done, shown_s=now if show else stage.shown_s)
        if ended:
            del self._stages[key]
        if show:
            left = ""
            if event.total and event.done > stage.first and not ended:
                rate = (event.done - stage.first) / (now - stage.began_s)
                left = f", about {_duration((event.total - event.done) / rate)} left"
            self.say(" ".join(key).strip() + f": {_amount(event)}{left}")

    def say(self, text: str) -> None:
        """Print a message to stderr, unless quiet."""
        if not self.quiet:
            self._write(text)

    def error(self, text: str) -> None:
        """Print an error line, also when quiet."""
        self._write(f"affectrace: {text}")

    def _write(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._err, flush=True)

    def result(self, values: Mapping[str, object]) -> None:
        """Print the result, with --json."""
        if self.as_json:
            print(json.dumps(values, indent=1, default=str))

    def done(self, values: Mapping[str, object], *lines: str) -> None:
        """End the progress display, print the result and closing messages."""
        self.close()
        self.result(values)
        for line in lines:
            self.say(line)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table to stdout: drawn on a terminal, tab-separated elsewhere; nothing when quiet or as JSON.

        Columns that do not fit the terminal follow in further tables, each with the first column. Columns of valence or
        arousal without any value are left out.
        """
        if self.quiet or self.as_json or sys.stdout is None:
            return
        self.close()
        cells = [[_cell(value) for value in row] for row in rows]
        used = [i for i, name in enumerate(columns) if not _OF_DIMENSION.search(name) or any(row[i] for row in cells)]
        columns, cells = [columns[i] for i in used], [[row[i] for i in used] for row in cells]
        if not sys.stdout.isatty():
            for line in (columns, *cells):
                print("\t".join(line))
            return
        from rich.console import Console
        from rich.table import Table

        console = Console()
        words = [
            [word for text in (name, *(row[i] for row in cells)) for word in text.split()]
            for i, name in enumerate(columns)
        ]
        widths = [min(max(map(len, column), default=0), LONGEST_WORD) for column in words]
        for shown in _tables(widths, console.width):
            drawn = Table(title=title or None if shown[:2] == [0, 1] else None, title_justify="left")
            spare = console.width - 1 - sum(widths[i] + 3 for i in shown)
            for i in shown:
                more = max(
                    0, min(spare, max(len(text) for text in (columns[i], *(row[i] for row in cells))) - widths[i])
                )
                drawn.add_column(columns[i], overflow="fold", width=widths[i] + more)
                spare -= more
            for row in cells:
                drawn.add_row(*(row[i] for i in shown))
            console.print(drawn, markup=False)


def _tables(widths: Sequence[int], terminal: int) -> list[list[int]]:
    """Columns of each table, the first one in all of them; borders take 3 characters per column."""
    tables = [[0]]
    for i, width in enumerate(widths[1:], 1):
        if len(tables[-1]) > 1 and 1 + sum(widths[k] + 3 for k in tables[-1]) + width + 3 > terminal:
            tables.append([0])
        tables[-1].append(i)
    return tables


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _amount(event: ProgressEvent) -> str:
    scale, unit = (1e6, "MB") if event.unit == "bytes" else (1, event.unit)
    total = "" if event.total is None else f" of {event.total / scale:.0f}"
    return f"{event.done / scale:.0f}{total} {unit}" + (f", {event.note}" if event.note else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

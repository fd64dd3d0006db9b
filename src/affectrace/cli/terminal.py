"""What the command line shows: progress, tables, errors. On a terminal with rich, elsewhere as plain lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from affectrace.progress import ProgressEvent

PLAIN_EVERY_S = 5.0  # seconds between plain progress lines (ours)
LONG_WORD = 24  # letters, after which a table breaks a word (ours)


class Terminal:
    """Speaks for the command line: messages and progress on stderr, results on stdout.

    quiet: only errors. as_json: results as one JSON object on stdout, no tables.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False, err: TextIO | None = None) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._err = err or sys.stderr
        self._bars: dict[tuple[str, str], Any] = {}
        self._lines: dict[tuple[str, str], tuple[float, float, float, float | None]] = {}
        self._live: Any = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the progress display."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._bars.clear()

    # ---- progress

    def progress(self, event: ProgressEvent) -> None:
        """The hook the library reports to."""
        if self.quiet:
            return
        if self._err.isatty():
            self._bar(event)
        else:
            self._line(event)

    def _bar(self, event: ProgressEvent) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[amount]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._err),
                transient=True,
            )
            self._live.start()
        key = (event.stage, event.item)
        if key not in self._bars:
            title = f"{event.stage} {event.item}".strip()
            self._bars[key] = self._live.add_task(title, total=event.total, amount="")
        self._live.update(self._bars[key], completed=event.done, total=event.total, amount=_amount(event))
        if event.total is not None and event.done >= event.total:
            self._live.remove_task(self._bars.pop(key))

    def _line(self, event: ProgressEvent) -> None:
        key, now = (event.stage, event.item), time.monotonic()
        began, first, last, said = self._lines.get(key, (now, event.done, event.done, None))
        if event.done < last:  # the same stage again, whether it came to its end or not
            began, first, said = now, event.done, None
        ended = event.total is not None and event.done >= event.total
        silent = now - (began if said is None else said) < PLAIN_EVERY_S and not (ended and said is not None)
        self._lines[key] = began, first, event.done, said if silent else now
        if ended:
            del self._lines[key]
        if silent:
            return
        left = ""
        if event.total and event.done > first and not ended:
            left = f", about {_duration((now - began) * (event.total - event.done) / (event.done - first))} left"
        self.say(f"{event.stage} {event.item}".strip() + f": {_amount(event)}{left}")

    # ---- messages and results

    def say(self, text: str) -> None:
        """A message for the person, on stderr; nothing when quiet."""
        if not self.quiet:
            self._write(text)

    def error(self, text: str) -> None:
        """An error line, always shown."""
        self._write(f"affectrace: {text}")

    def _write(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._err, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A result table on stdout: drawn on a terminal, tab-separated elsewhere; nothing when quiet or as JSON.

        Columns that do not fit the terminal follow below in tables of their own, beside the first column.
        """
        if self.quiet or self.as_json or sys.stdout is None:
            return
        self.close()
        cells = [[_cell(value) for value in row] for row in rows]
        if not sys.stdout.isatty():
            for line in (columns, *cells):
                print("\t".join(line))
            return
        from rich.console import Console
        from rich.table import Table

        console = Console()
        widths = [_least_width([name, *(row[i] for row in cells)]) for i, name in enumerate(columns)]
        for shown in _that_fit(widths, console.width):
            drawn = Table(title=title or None if shown[:2] == [0, 1] else None, title_justify="left")
            for i in shown:
                drawn.add_column(columns[i], overflow="fold", min_width=widths[i])
            for row in cells:
                drawn.add_row(*(row[i] for i in shown))
            console.print(drawn, markup=False)

    def result(self, values: Mapping[str, object]) -> None:
        """The machine-readable result, with --json."""
        if self.as_json:
            print(json.dumps(values, indent=1, default=str))


def _least_width(texts: Sequence[str]) -> int:
    """Columns of the terminal under which a table's column would break its words."""
    return min(max(len(word) for text in texts for word in text.split() or [""]), LONG_WORD)


def _that_fit(widths: Sequence[int], terminal: int) -> list[list[int]]:
    """Numbers of columns by the table they are in; each begins with the first column. A border takes 3."""
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
    return _done(event) + (f", {event.note}" if event.note else "")


def _done(event: ProgressEvent) -> str:
    if event.unit == "bytes":
        total = "" if event.total is None else f" of {event.total / 1e6:.0f}"
        return f"{event.done / 1e6:.0f}{total} MB"
    total = "" if event.total is None else f" of {event.total:.0f}"
    return f"{event.done:.0f}{total} {event.unit}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

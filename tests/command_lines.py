"""Command lines of tests: an option given again replaces the one before (the command refuses to be told twice)."""

from __future__ import annotations


def command(*args: object) -> list[str]:
    """Arguments as text; of an option that is there twice the later values, at the earlier place."""
    head: list[str] = []
    options: dict[str, list[str]] = {}
    values = head
    for text in map(str, args):
        if text.startswith("--"):
            values = options[text] = []
        else:
            values.append(text)
    return [*head, *(part for name, given in options.items() for part in (name, *given))]

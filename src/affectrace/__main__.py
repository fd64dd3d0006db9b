"""`python -m affectrace`."""

from affectrace.cli import entry

entry()

"""A run killed in mid-epoch goes on with the losses of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from affectrace.train.loop import read_log

UNIT = str(Path(__file__).parents[1] / "unit")
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import test_train as t

def kill_in_second_epoch(event):  # epochs of 4 steps
    if len(t.rows(out, "step")) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
out = Path(sys.argv[1])
t.train(t.made("mamba-va"), t.TRAINING, t.VALIDATION, out, t.config(epochs=3), progress=kill_in_second_epoch)
"""


def test_killed_and_resumed_is_as_if_nothing_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([UNIT, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(killed)], env=environment, timeout=200)
    assert done.returncode == -signal.SIGKILL
    state = torch.load(killed / "resume.pt", weights_only=True)
    assert state["position"]["step"] == 6  # it goes on inside the second epoch, and does step 7 again
    assert len([r for r in read_log(killed) if r["event"] == "step"]) == 7
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # a line cut off
    monkeypatch.syspath_prepend(UNIT)
    import test_train as t

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that was killed
    for out in (killed, whole):
        t.train(t.made("mamba-va"), t.TRAINING, t.VALIDATION, out, t.config(epochs=3), resume=out == killed)
    torch.set_num_threads(threads)
    expected, found = read_log(whole), read_log(killed)
    assert len(expected) == len(found) == 12 + 6
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-6) for k in a)
    for name in ("steps.csv", "validations.csv", "best/config.json"):
        assert (whole / name).read_text() == (killed / name).read_text()

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

UNIT = Path(__file__).parents[1] / "unit"
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
import test_train as t

torch.set_num_threads(1)

def train(out, progress):
    resume = (out / "resume.pt").exists()
    t.train(t.made("mamba-va"), t.TRAINING, t.VALIDATION, out, t.config(epochs=3), resume=resume, progress=progress)

def kill_in_second_epoch(event):  # epochs of 4 steps
    if len(t.rows(killed, "step")) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

killed, whole = map(Path, sys.argv[1:])
if killed.exists():
    train(killed, lambda event: None)
    train(whole, lambda event: None)
else:
    train(killed, kill_in_second_epoch)
"""


def run(*outs: Path) -> int:
    paths = os.pathsep.join([str(UNIT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", SCRIPT, *map(str, outs)], env=environment, timeout=200).returncode


def test_killed_and_resumed_is_as_if_nothing_happened(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert run(killed, whole) == -signal.SIGKILL
    state = torch.load(killed / "resume.pt", weights_only=True)
    assert state["position"]["step"] == 6  # it goes on inside the second epoch, and does step 7 again
    assert len([r for r in read_log(killed) if r["event"] == "step"]) == 7
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # a line cut off
    assert run(killed, whole) == 0
    expected, found = read_log(whole), read_log(killed)
    assert len(expected) == len(found) == 12 + 6
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-6) for k in a)
    for name in ("steps.csv", "validations.csv", "best/config.json"):
        assert (whole / name).read_text() == (killed / name).read_text()

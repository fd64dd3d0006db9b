"""A run killed in mid-epoch goes on with the losses of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from affectrace.train.loop import read_log

SCRIPT = """
import sys, time
from pathlib import Path
import torch
import test_train as t
torch.set_num_threads(1)
slow = float(sys.argv[1])
for out in map(Path, sys.argv[2:]):
    t.train(t.made("mamba-va"), t.TRAINING, t.VALIDATION, out, t.config(epochs=3), resume=(out / "resume.pt").exists(),
            progress=lambda e: time.sleep(slow if e.stage == "training" else 0))
"""


def start(script: Path, slow_s: float, *outs: Path) -> subprocess.Popen[bytes]:
    unit = Path(__file__).parents[1] / "unit"
    paths = os.pathsep.join([str(unit), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(script), str(slow_s), *map(str, outs)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said.decode()[-3000:]


def test_killed_and_resumed_is_as_if_nothing_happened(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    victim = start(script, 0.3, tmp_path / "killed")
    deadline = time.monotonic() + 150
    while len([r for r in read_log(tmp_path / "killed") if r["event"] == "step"]) < 7:  # epochs of 4 steps
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    state = torch.load(tmp_path / "killed" / "resume.pt", weights_only=True)
    assert state["position"]["step"] == 6  # it goes on inside the second epoch, and does step 7 again
    assert len([r for r in read_log(tmp_path / "killed") if r["event"] == "step"]) > 6
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # a line cut off
    finish(start(script, 0, tmp_path / "killed", tmp_path / "whole"))
    whole, killed = read_log(tmp_path / "whole"), read_log(tmp_path / "killed")
    assert len(whole) == len(killed) == 12 + 6
    for a, b in zip(whole, killed, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-6) for k in a)
    for name in ("steps.csv", "validations.csv", "best/config.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "killed" / name).read_text()

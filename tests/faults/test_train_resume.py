"""A run killed in mid-epoch goes on, and leaves the files of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from affectrace.train import train
from made_training import TRAINING, VALIDATION, config, model, rows

SCRIPT = """
import sys, time
from pathlib import Path
import torch
import made_training as made
from affectrace.train import train
torch.set_num_threads(1)
train(made.model("mamba-va"), made.TRAINING, made.VALIDATION, Path(sys.argv[1]), made.config(epochs=3),
      progress=lambda e: time.sleep(0.1 if e.stage == "training" else 0))
"""


def test_killed_and_resumed_is_as_if_nothing_happened(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    victim = subprocess.Popen([sys.executable, "-c", SCRIPT, str(killed)], env=environment)
    deadline = time.monotonic() + 150
    while len(rows(killed, "step")) < 7:  # epochs of 4 steps
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert torch.load(killed / "resume.pt", weights_only=True)["position"]["step"] == 6  # inside the second epoch
    with (killed / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # a line cut off
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for out in (killed, whole):
            train(model("mamba-va"), TRAINING, VALIDATION, out, config(epochs=3), resume=out == killed)
    finally:
        torch.set_num_threads(threads)
    assert (len(rows(whole, "step")), len(rows(whole, "validation"))) == (12, 6)
    for name in ("log.jsonl", "steps.csv", "validations.csv", "run.json", "best/config.json", "last/model.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name

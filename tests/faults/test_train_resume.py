"""A run killed in mid-epoch goes on, and leaves the files of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from affectrace.train import train
from made_training import TRAINING, VALIDATION, config, model, rows

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import made_training as made
from affectrace.train import train

def kill_in_second_epoch(event):  # epochs of 4 steps
    if len(made.rows(out, "step")) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
out, config = Path(sys.argv[1]), made.config(epochs=3)
train(made.model("mamba-va"), made.TRAINING, made.VALIDATION, out, config, progress=kill_in_second_epoch)
"""


def test_killed_and_resumed_is_as_if_nothing_happened(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(killed)], env=environment, timeout=200)
    assert done.returncode == -signal.SIGKILL
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

"""Two processes (gloo, CPU) make the losses of one, step by step, for the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from affectrace.train.loop import read_log

LIMIT_S = 400
SCRIPT = """
import datetime, sys
from pathlib import Path
import numpy as np
import torch
import made_training as t
from affectrace.features.base import ExtractorId, Features
from affectrace.models.checkpoint import create
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.timeline import Timeline
from affectrace.train import train

out, rank, n, meeting = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
if n > 1:  # they meet in a file: no port to be taken by another
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=n, timeout=datetime.timedelta(seconds=300))

def run(name, training, **changes):
    torch.manual_seed(7)
    still = dict(dropout=0.0) | ({"head_dropout": (0.0, 0.0), "clock": "native"} if name == "maven" else {})
    model = create(name, "tiny", **t.FIELDS[name], **still)
    # 11 windows by 3: the last batch of an epoch has two, so a process has one or none of its own
    c = t.config(epochs=2, devices=n, strategy="ddp" if n > 1 else "auto", **changes)
    train(model, training, t.VALIDATION, out / f"{name}{changes.get('batch_size', '')}", c)

run("gru", t.TRAINING)
run("mamba-va", t.TRAINING, batch_size=4)
native = SequenceConfig(clock="native")  # where a process has no row of a stream, its weights take no part
none = np.zeros((0, 8), np.float32), np.zeros(0, bool)
nothing = Features("text", Timeline.regular(0, 25), *none, ExtractorId("text"))
own = [Sequence(s.recording_id, s.timeline, {**s.inputs, "text": s.inputs["text"] if i == 0 else nothing}, s.labels,
                config=native) for i, s in enumerate(t.TRAINING)]
run("maven", own)
"""


def run(script: Path, out: Path, n: int, meeting: Path) -> None:
    """The script on n processes at once."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in range(n):
        own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(n)} if n > 1 else {}
        line = [sys.executable, str(script), str(out), str(rank), str(n), str(meeting)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(line, env=environment | own, **pipes))
    try:
        for process in processes:
            told, _ = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, told[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_make_the_losses_of_one(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    for n in (1, 2):
        run(script, tmp_path / str(n), n, tmp_path / "meeting")
    runs = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert runs == ["gru", "mamba-va4", "maven"]
    for name in runs:
        one, two = (read_log(tmp_path / str(n) / name) for n in (1, 2))
        assert len(one) == len(two) > 4
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert a[key] == pytest.approx(b[key], abs=1e-5) if isinstance(a[key], float) else a[key] == b[key]

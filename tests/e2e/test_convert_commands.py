"""`affectrace convert`, `export` and `push`, and what they write, taken by the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from affectrace.inference.run import TrainedModel
from affectrace.models.checkpoint import create, save
from authors_mamba_va import TheirNetwork, small
from authors_maven import ReleasedBeit, ReleasedMlp, old_names, shaken
from near import assert_near

Run = Callable[..., Any]


@torch.no_grad()
def test_the_authors_mamba_va(tmp_path: Path, run_json: Run, refused: Run) -> None:
    theirs = small()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    extras = {"epoch": 3, "best": np.float64(0.4), "state_dict": state}  # as training scripts save it
    torch.save(extras, tmp_path / "ckpt.pt")
    done = run_json("convert", tmp_path / "ckpt.pt", "--from", "charon", "--out", tmp_path / "m")
    assert done["preset"] == "released"
    assert len(done["unused"]) == 2 + 4 * 8  # the adaptor, and the second names of each block's layers
    assert all(why for why in done["unused"].values())
    found = TrainedModel.load(tmp_path / "m")
    assert found.features == {"visual": "mae-vit-l"}
    assert found.sequences.causal
    x = torch.randn(1, 70, 24)
    assert_near(found.model({"visual": x})[0], theirs(x))
    kept = json.loads((tmp_path / "m" / "config.json").read_text())["extra"]["converted"]
    assert kept["file"] == "ckpt.pt"
    assert kept["unused"] == done["unused"]
    assert "already contains a model" in refused(
        "convert", tmp_path / "ckpt.pt", "--from", "charon", "--out", tmp_path / "m"
    )


@pytest.mark.parametrize(
    ("network", "names", "preset"),
    [(lambda: ReleasedBeit(depth=1), old_names, "released_beit"), (ReleasedMlp, dict, "released_mlp")],
    ids=["beit", "mlp"],
)
@torch.no_grad()
def test_the_authors_maven(network: Any, names: Any, preset: str, tmp_path: Path, run_json: Run) -> None:
    torch.manual_seed(0)
    theirs = shaken(network())
    torch.save(names(theirs.state_dict()), tmp_path / "best_model.pth")
    done = run_json("convert", tmp_path / "best_model.pth", "--from", "maven", "--out", tmp_path / "m")
    assert (done["preset"], done["unused"]) == (preset, {})
    found = TrainedModel.load(tmp_path / "m")
    assert found.scheme is not None
    assert found.scheme.utterances
    x = torch.randn(1, 30, 1024), torch.randn(1, 768), torch.randn(1, 768)
    inputs = {"visual": x[0], "audio": x[1][:, None], "text": x[2][:, None]}
    y, expected = found.model(inputs)[0], theirs(*x)
    if preset == "released_mlp":
        expected = torch.stack(
            (expected[..., 1] * expected[..., 0].cos(), expected[..., 1] * expected[..., 0].sin()), -1
        )
    assert_near(y, expected)
    run_json("convert", tmp_path / "best_model.pth", "--from", "maven", "--out", tmp_path / "s", "--standardise")
    scaled = {m: (v - v.mean()) / (v.std() + 1e-8) for m, v in inputs.items()}
    again = TrainedModel.load(tmp_path / "s").model(inputs)[0]
    assert_near(again, found.model(scaled)[0], 1e-4)


class Stranger:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.folder),))


def test_mistakes_cost_one_line_and_nothing_is_written(tmp_path: Path, refused: Run) -> None:
    file, out = tmp_path / "c.pt", tmp_path / "m"
    run = ("convert", file, "--from", "charon", "--out", out)
    assert "c.pt: no such file" in refused(*run)
    torch.save({"state_dict": {}, "hook": Stranger(tmp_path / "made")}, file)
    error = refused(*run)
    assert "holds Python objects beside tensors (" in error
    assert "mkdir" in error
    assert not (tmp_path / "made").exists()
    state = small().state_dict()
    state.pop("dual_reg.2.bias")
    state.pop("mamba.mamba.layers.0.0.D")
    torch.save(state | {"more.weight": torch.zeros(1)}, file)
    error = refused(*run)
    for part in ("more.weight is not known", "mamba.mamba.layers.0.0.D is missing", "dual_reg.2.bias is missing"):
        assert part in error
    assert "is not a MAVEN checkpoint of the authors" in refused("convert", file, "--from", "maven", "--out", out)
    assert "--from: is required" in refused("convert", file, "--out", out)
    assert "--checkpoint: is required" in refused("convert", "--from", "charon", "--out", out)
    assert "charon standardizes nothing" in refused(*run, "--standardise")
    assert not out.exists()


def test_a_model_as_onnx(tmp_path: Path, run_json: Run, refused: Run) -> None:
    save(create("mamba-va", "tiny"), tmp_path / "m")
    done = run_json("export", tmp_path / "m", "--to", "onnx", "--out", tmp_path / "o" / "step.onnx")
    assert done["path"] == str(tmp_path / "o" / "step.onnx")
    assert done["difference"] <= 1e-5
    assert {i.name for i in ort.InferenceSession(done["path"]).get_inputs()} == set(done["inputs"])
    named = run_json("export", tmp_path / "m", "--to", "onnx", "--out", tmp_path / "o", "--frames", 4)
    assert Path(named["path"]).name.startswith("mamba-va-")
    assert named["inputs"]["visual"] == [1, 4, 32]
    assert "is a model, not a trace; export it with --to onnx" in refused("export", tmp_path / "m")
    assert "takes one checkpoint folder, got 0" in refused("export", "--to", "onnx")
    assert "--frames belongs to --to onnx" in refused("export", tmp_path / "m", "--frames", 3)


@pytest.mark.slow
@torch.no_grad()
def test_the_published_size_from_their_file_to_onnx(tmp_path: Path, run_json: Run) -> None:
    torch.manual_seed(0)
    torch.save(TheirNetwork(1024, (1024, 768, 512, 256), 15).state_dict(), tmp_path / "c.pt")
    done = run_json("convert", tmp_path / "c.pt", "--from", "charon", "--out", tmp_path / "m")
    assert done["parameters"] == 67_155_086
    assert run_json("export", tmp_path / "m", "--to", "onnx", "--out", tmp_path)["difference"] <= 1e-5
    assert isinstance(TrainedModel.load(tmp_path / "m").model, nn.Module)

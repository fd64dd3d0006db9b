"""checkpoint.py: the registry, and folders that are read strictly or refused clearly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from affectrace.errors import ConfigError, FormatError, InputError, UnknownNameError
from affectrace.inference.run import TrainedModel, sequence_config, sequences_dict
from affectrace.models.checkpoint import create, load, save
from affectrace.models.fast import for_inference


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(create("mamba-va", "tiny"), tmp_path / "m", preset="tiny", extra={"scores": {"ccc": 0.5}})
    return tmp_path / "m"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    about = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in about.items() if v is not None}))


def test_config_says_everything(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    said = [about[k] for k in ("format", "format_version", "model", "preset", "extra")]
    assert said == ["affectrace-model", 1, "mamba-va", "tiny", {"scores": {"ccc": 0.5}}]
    assert about["config"]["tcn_channels"] == [32, 24, 24, 16]
    assert about["versions"].keys() == {"affectrace", "torch", "python"}
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert re.fullmatch("mamba-va@[0-9a-f]{12}", load(folder).id)


def test_saving_again_replaces_and_equal_weights_have_equal_ids(folder: Path) -> None:
    first = load(folder)
    before = first.id
    save(first.model, folder, preset="tiny", extra={"scores": {"ccc": 0.5}})
    assert load(folder).id == before
    with torch.no_grad():
        next(first.model.parameters()).add_(1.0)
    save(first.model, folder)
    assert load(folder).id != before


def test_loading_leaves_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(folder)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "changes,error,message",
    [
        ({"model": "mamba"}, UnknownNameError, r"config.json: unknown model 'mamba'; did you mean 'mamba-va'\?"),
        ({"model": None}, FormatError, "lacks model"),
        ({"config": None, "extra": 3}, FormatError, "lacks config, extra"),
        ({"extra": {"sequences": [1], "training": "x"}}, FormatError, "lacks extra.sequences, extra.training"),
        (
            {"extra": {"recordings": {"training": [[]]}, "validation": 1}},
            FormatError,
            "extra.recordings, extra.validation",
        ),
        ({"extra": {"extractors": {"x": {"name": "x", "columns": [{}]}}}}, FormatError, "lacks extra.extractors"),
        ({"extra": {"sequences": {"clock": 3, "smell": 1}}}, ConfigError, "smell"),
        ({"format": "other"}, FormatError, "is not a configuration of affectrace"),
        ({"format_version": 2}, FormatError, "has format version 2, this is 1; update affectrace"),
        ({"format_version": None}, FormatError, "has format version None"),
        ({"config": {"d_stat": 8}}, ConfigError, "d_stat: unknown field"),
        ({"config": {"d_state": "8"}}, ConfigError, r"d_state"),
        ({"config": {"dropout": 2.0}}, ConfigError, "dropout: "),
        ({"config": {}}, FormatError, "does not belong to the config.json beside it"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    folder: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(error, match=message):
        TrainedModel.load(folder)


GOLDEN_MAVEN = Path(__file__).parents[1] / "golden" / "maven"


@pytest.mark.parametrize(
    ("kept", "align"), [({}, "mean"), ({"sequences": {"clock": "frame", "align": "hold"}}, "hold")]
)
def test_a_maven_from_before_alignment_was_a_field_keeps_what_it_was_trained_with(
    tmp_path: Path, kept: dict[str, Any], align: str
) -> None:
    """Today's default would be another input; saved again, the field says what was done."""
    old = Path(shutil.copytree(GOLDEN_MAVEN, tmp_path / "old"))
    assert "align" not in json.loads((old / "config.json").read_text())["config"]
    edit(old, extra=kept)
    model = load(old).model
    assert model.config.align == TrainedModel.load(old).sequences.align == align
    save(model, tmp_path / "again", extra=kept)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["config"]["align"] == align
    assert TrainedModel.load(tmp_path / "again").sequences.align == align


def test_a_maven_with_retired_fields_and_an_old_presets_name_loads(tmp_path: Path) -> None:
    """tests/golden/maven was saved when the longest segment was a field of the network."""
    old = Path(shutil.copytree(GOLDEN_MAVEN, tmp_path / "old"))
    assert "max_segment_s" in json.loads((old / "config.json").read_text())["config"]
    edit(old, preset="seed")
    assert load(old).preset == "arxiv_v1"
    assert (
        create("maven", "seed", width=16, encoder_width=24, encoder_heads=2, encoder_depth=1).config.clock == "native"
    )


def test_how_features_were_brought_to_a_model_in_training_counts_when_it_predicts(tmp_path: Path) -> None:
    save(create("maven", "tiny"), tmp_path / "m", extra={"sequences": {"clock": "frame", "align": "hold"}})
    assert load(tmp_path / "m").model.config.align == "linear"
    assert TrainedModel.load(tmp_path / "m").sequences.align == "hold"


@pytest.mark.parametrize("clock", ["native", "utterance"])
def test_other_clocks_align_nothing_and_old_ones_load(tmp_path: Path, clock: str) -> None:
    extra = {"sequences": {"clock": "native", "align": "mean"}}
    save(create("maven", "tiny", clock=clock), tmp_path / "m", extra=extra)
    about = json.loads((tmp_path / "m" / "config.json").read_text())
    del about["config"]["align"]
    path = tmp_path / "m" / "model.safetensors"
    save_file(load_file(path), path, metadata={"affectrace-model": json.dumps(about)})
    edit(tmp_path / "m", config=about["config"])
    assert load(tmp_path / "m").model.config.align == "linear"


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path) | {"proj.weight": torch.zeros(2, 2), "more": torch.zeros(1)}
    del tensors["proj.bias"]
    save_file(tensors, path, metadata=header)
    message = r"model.safetensors: .*proj.bias is missing, more is unexpected, proj.weight is \(2, 2\), not \(16, 16\)"
    with pytest.raises(FormatError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        (b"", True, "model.safetensors: is damaged"),
        (b"x" * 1000, True, "model.safetensors: is damaged"),
        (None, True, "model.safetensors is missing"),
        (None, False, r"not a checkpoint folder \(config.json is missing\)"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, weights: bytes | None, config: bool, message: str) -> None:
    path = folder / "model.safetensors"
    path.unlink() if weights is None else path.write_bytes(weights)
    if not config:
        (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=message):
        load(folder)


def test_foreign_and_absent_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nowhere: does not exist"):
        load(tmp_path / "nowhere")
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="was not written by affectrace"):
        load(folder)


def test_what_cannot_be_saved_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Linear is not a model of the registry"):
        save(torch.nn.Linear(1, 1), tmp_path / "m")
    model: Any = create("mamba-va", "tiny")
    with pytest.raises(InputError, match="save the original, not a copy for inference"):
        save(for_inference(model), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_checkpoints_without_a_word_on_label_rows_stay_as_they_were_trained(tmp_path: Path) -> None:
    model, now = create("gru", "tiny"), sequence_config(create("gru", "tiny"))
    kept = sequences_dict(now)
    save(model, tmp_path / "new", extra={"sequences": kept})
    assert TrainedModel.load(tmp_path / "new").sequences == now
    assert now.label_rows == "end"
    old = {name: value for name, value in kept.items() if name != "label_rows"}
    save(model, tmp_path / "old", extra={"sequences": old})
    assert TrainedModel.load(tmp_path / "old").sequences.label_rows == "start"

"""Extractor names to weights: Hub models without a commit are pinned when they are first used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny_encoders as tiny
from affectrace import weights
from affectrace.errors import ConfigError, InputError, OutputError, UnknownNameError, WeightsError
from affectrace.features import registry
from affectrace.weights.hub import Place, revisions_path

SWIN = "microsoft/swin-base-patch4-window7-224"
FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """Answers with a commit and records the questions."""

    def __init__(self, commit: str | None) -> None:
        self.commit, self.asked = commit, list[str]()

    def model_info(self, repo_id: str, *, timeout: float) -> SimpleNamespace:
        self.asked.append(repo_id)
        if self.commit is None:
            raise ConnectionError("no route to host")
        return SimpleNamespace(sha=self.commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(FIRST)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "cache"))
    return made


def test_the_table_names_every_commit_in_full() -> None:
    known = registry.ENCODERS.items()
    unpinned = {n for n, e in known if e.revision is None and not e.source.startswith("package:")}
    assert unpinned == {"mae-vit-h", "swin-b", "beit-b"}  # as docs/data.md says
    assert all(re.fullmatch("[0-9a-f]{40}", r) for r in (e.revision for _, e in known) if r is not None)


def test_the_newest_commit_is_pinned(hub: Hub) -> None:
    name, note = registry.pin("swin-b")
    assert name == f"swin-b={SWIN}@{FIRST}"
    assert FIRST in note
    hub.commit = SECOND  # the owner changes the model
    name, note = registry.pin("swin-b")
    assert name == f"swin-b={SWIN}@{FIRST}"
    assert "pinned" in note
    assert hub.asked == [SWIN]
    assert json.loads((weights.cache_folder() / "hub-revisions.json").read_text()) == {SWIN: FIRST}
    hub.commit = None  # the network is not needed again
    assert registry.pin(f"mae-vit-l={SWIN}")[0] == f"mae-vit-l={SWIN}@{FIRST}"


def test_other_names_stay_as_they_are(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "model").mkdir(parents=True)  # a folder, not a Hub model
    names = ["mae-vit-l", "minilm-l6", "whisper-tiny.en", "prosody", "fer", "nobody-knows"]
    for name in [*names, f"swin-b={SWIN}@{SECOND}", "swin-b=/some/folder", "swin-b=user/model"]:
        assert registry.pin(name) == (name, "")
    assert hub.asked == []


def test_loading_reports_and_records_the_commit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = tiny.mae(tmp_path / "mae"), list[tuple[str, str | None]]()

    def directory(repo_id: str, revision: str | None = None, **_: object) -> Path:
        asked.append((repo_id, revision))
        return folder

    monkeypatch.setattr("affectrace.weights.hub.hub_directory", directory)
    loaded = registry.load(["mae-vit-h"])
    assert asked == [("facebook/vit-mae-huge", FIRST)]
    assert loaded.chosen == (f"mae-vit-h=facebook/vit-mae-huge@{FIRST}",)
    assert any(FIRST in note for note in loaded.notes)
    assert registry.load(loaded.chosen).extractors[0].extractor == loaded.extractors[0].extractor


def test_without_a_commit_nothing_is_loaded(hub: Hub, tmp_path: Path) -> None:
    hub.commit = None
    with pytest.raises(WeightsError, match=r"cannot be asked for its commit .*name them: swin-b=FOLDER"):
        registry.load(["swin-b"])
    hub.commit = "main"
    with pytest.raises(WeightsError, match="the Hub gave no commit"):
        registry.pin("swin-b")
    assert not revisions_path().exists()
    hub.commit = FIRST
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError):
        registry.pin("swin-b")


@pytest.mark.parametrize("content", ["[]", '{"a/b": "main"}', "{"])
def test_a_damaged_record_is_refused(content: str, hub: Hub) -> None:
    revisions_path().parent.mkdir(parents=True)
    revisions_path().write_text(content)
    with pytest.raises(ConfigError, match="hub-revisions.json"):
        registry.pin("swin-b")


def test_every_hidden_state_is_an_extractor_of_its_own(tmp_path: Path) -> None:
    folder = tiny.hubert(tmp_path)
    last, first = (registry.load_one(f"{name}={folder}") for name in ("hubert-base", "hubert-base-layer1"))
    assert (last.extractor.name, first.extractor.name) == ("hubert-base", "hubert-base-layer1")
    assert first.extractor.preprocessing["layer"] == 1
    assert last.extractor.digest() != first.extractor.digest()
    with pytest.raises(InputError, match="there is no layer 99"):
        registry.load_one(f"hubert-base-layer99={folder}")
    assert registry.choices_of(["whisper-tiny.en-layer2"]) == [("whisper-tiny.en-layer2",)]
    for name in ("swin-b-layer2", "hubert-base-layer", "hubert-base-layer-1"):
        with pytest.raises(UnknownNameError, match=name):
            registry.choices_of([name])


def test_tuning_data_are_read_beside_the_weights(tmp_path: Path) -> None:
    run = {
        "encoder": {"name": "mae-vit-l", "weights_sha256": "a"},
        "recordings": {"training": ["b", "a"], "validation": ["c"]},
        "data": {"name": "first", "fold": 0},
    }
    (tmp_path / "finetune.json").write_text(json.dumps(run))
    once = Place(tmp_path, "s").tuned_on()
    assert once == {"data": [run["data"]], "training": ["a", "b"], "validation": ["c"]}
    second = {**run, "encoder": {**run["encoder"], "tuned_on": once}, "data": {"name": "second"}}
    second["recordings"] = {"training": ["c"], "validation": ["d"]}
    (tmp_path / "finetune.json").write_text(json.dumps(second))
    assert Place(tmp_path / "model.pth", "s").tuned_on() == {
        "data": [run["data"], {"name": "second"}],
        "training": ["a", "b", "c"],
        "validation": ["c", "d"],
    }
    (tmp_path / "finetune.json").write_text("{")
    with pytest.raises(WeightsError, match=r"finetune.json: .*; tune the encoder again, or remove the file"):
        Place(tmp_path, "s").tuned_on()

"""Publishing models: a folder stands for the Hub behind its library's own calls; names are pinned."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import affectrace
from affectrace.cli import main
from affectrace.errors import FormatError, InputError, OutputError, UnknownNameError, WeightsError
from affectrace.models.checkpoint import create, load, save
from affectrace.models.publish import push

UPLOAD = inspect.signature(huggingface_hub.HfApi.upload_folder)
CREATE = inspect.signature(huggingface_hub.HfApi.create_repo)
DOWNLOAD = inspect.signature(huggingface_hub.snapshot_download)


class FolderHub:
    """Repositories as folders, `user/model/COMMIT/...`, and the cache of one machine. `online` False: no network."""

    def __init__(self, root: Path) -> None:
        self.remote, self.cache, self.online, self.created = root / "remote", root / "cache", True, {}
        self.messages: list[str] = []

    def create_repo(self, *args: Any, **kwargs: Any) -> None:
        given = CREATE.bind(self, *args, **kwargs).arguments
        assert given["exist_ok"]
        self.created.setdefault(given["repo_id"], given["private"])

    def upload_folder(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
        given = UPLOAD.bind(self, *args, **kwargs).arguments
        if not self.online:
            raise ConnectionError("no route to host")
        sent = [p for p in Path(given["folder_path"]).iterdir() if p.name in given["allow_patterns"]]
        commit = hashlib.sha1(b"".join(p.read_bytes() for p in sorted(sent))).hexdigest()
        into = self.remote / given["repo_id"] / commit
        into.mkdir(parents=True)
        for path in sent:
            shutil.copy(path, into)
        self.messages.append(given["commit_message"])
        return SimpleNamespace(oid=commit, commit_url=f"https://hub.test/{given['repo_id']}/commit/{commit}")

    def model_info(self, repo_id: str, *, revision: str, timeout: float) -> None:
        if not self.online:
            raise ConnectionError("no route to host")

    def snapshot_download(self, *args: Any, **kwargs: Any) -> str:
        given = DOWNLOAD.bind(*args, **kwargs).arguments
        kept = self.cache / given["repo_id"] / given["revision"]
        if given.get("local_files_only"):
            if not kept.is_dir():
                raise FileNotFoundError("not in the cache")
            return str(kept)
        there = self.remote / given["repo_id"] / given["revision"]
        if not self.online or not there.is_dir():
            raise ConnectionError("no route to host")
        kept.mkdir(parents=True, exist_ok=True)
        for path in there.iterdir():
            shutil.copy(path, kept)
        return str(kept)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    made = FolderHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    out = tmp_path / "run" / "best"
    save(create("gru", "tiny", modality="face"), out, extra={"features": {"face": "mesh-geometry"}})
    (out / "README.md").write_text("# card\n")
    (out / "statistics.safetensors").write_bytes(b"")
    (out / "resume.pt").write_bytes(b"state of a run")
    (out / "notes-of-mine.txt").write_text("who was in the videos")
    return out


def test_what_is_pushed_is_loaded_by_its_commit_and_then_without_the_network(hub: FolderHub, folder: Path) -> None:
    done = push(folder, "somebody/gru-faces")
    assert hub.created == {"somebody/gru-faces": True}  # private
    assert done.files == ("model.safetensors", "config.json", "statistics.safetensors", "README.md")
    (there,) = (hub.remote / "somebody" / "gru-faces").iterdir()
    assert {p.name for p in there.iterdir()} == set(done.files)  # nothing else of the folder
    assert done.name == f"somebody/gru-faces@{there.name}"
    assert load(folder).id in hub.messages[0]
    (folder / "statistics.safetensors").unlink()
    (there / "statistics.safetensors").unlink()
    model = affectrace.load(done.name)
    assert model.source == load(folder).id
    hub.online = False
    assert affectrace.load(done.name).source == model.source
    shutil.rmtree(hub.cache)
    with pytest.raises(WeightsError, match="not in the Hub's cache and cannot be downloaded"):
        affectrace.load(done.name)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("somebody/m", WeightsError, "a Hub model needs a pinned revision"),
        ("somebody/m@main", WeightsError, "a Hub model needs a pinned revision"),
        ("zero-shoot", UnknownNameError, r"unknown model 'zero-shoot'; did you mean 'zero-shot'\?, a checkpoint"),
        ("/no/such/folder", FormatError, "does not exist"),
        ("mamba-va", InputError, r"is a network without weights; train it \(affectrace train mamba-va\)"),
    ],
)
def test_names_that_are_no_model_are_refused(hub: FolderHub, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        affectrace.load(name)


def test_nothing_is_sent_that_is_no_checkpoint_or_has_no_name(hub: FolderHub, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a checkpoint folder"):
        push(folder.parent, "somebody/m")
    for name in ("", "a/b/c", "some body/m"):
        with pytest.raises(OutputError, match="is not a repository name; give user/model"):
            push(folder, name)
    hub.online = False
    with pytest.raises(OutputError, match=r"somebody/m: cannot be uploaded \(ConnectionError: no route to host\)"):
        push(folder, "somebody/m")
    assert not hub.remote.exists()


SYNTHETIC = {"data": {"name": "affectrace-synthetic", "synthetic": True}, "recordings": {"training": ["synth_0001"]}}
HIDDEN = {"recordings": {"training": ["synth_0001_left"], "validation": ["synth_0010"]}}
TAGGED = '---\ntags: ["gru", "synthetic-data"]\ndataset: {name: "affectrace-synthetic"}\n---\n# not Aff-Wild2\n'


def made_of(folder: Path, extra: dict[str, Any], card: str | None) -> Path:
    save(create("gru", "tiny", modality="face"), folder, extra=extra)
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize(
    ("extra", "card", "repo", "message"),
    [
        (SYNTHETIC, None, "me/m", "there is no README.md"),
        (SYNTHETIC, "# a model\n", "me/m", "has no tag synthetic-data"),
        (SYNTHETIC, TAGGED.replace("affectrace-s", "Aff-Wild2: s"), "me/m", "names Aff-Wild2"),
        (SYNTHETIC, TAGGED, "me/gru_affwild2", "the repository is called me/gru_affwild2"),
        ({"data": {"name": "aff-wild2"}} | HIDDEN, TAGGED, "me/m", "config.json does not say so"),
    ],
)
def test_weights_of_synthetic_data_are_shared_as_such_or_not_at_all(
    hub: FolderHub, folder: Path, extra: dict[str, Any], card: str | None, repo: str, message: str
) -> None:
    made_of(folder, extra, card)
    with pytest.raises(OutputError, match="was trained on synthetic recordings .*" + message):
        push(folder, repo)
    assert not hub.remote.exists()
    assert hub.created == {}


@pytest.mark.parametrize(
    ("extra", "repo"),
    [
        (SYNTHETIC, "me/planted"),
        ({"data": {"name": "aff-wild2"}, "recordings": {"training": ["1-30-1280x720"]}}, "me/aff-wild2"),
        ({"data": {"name": "synthesizers"}, "recordings": {"training": ["synth_0001"]}}, "me/m"),
        ({"data": "made"}, "me/m"),
    ],
)
def test_other_weights_and_those_that_say_it_are_shared(
    hub: FolderHub, folder: Path, extra: dict[str, Any], repo: str
) -> None:
    assert push(made_of(folder, extra, TAGGED), repo).name.startswith(repo)


def test_by_the_command_line(hub: FolderHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), "somebody/m", "--public", "--message", "first"]) == 0
    said = "".join(capsys.readouterr())
    assert "model: somebody/m@" in said
    assert "page:  https://hub.test/somebody/m/commit/" in said
    assert hub.created == {"somebody/m": False}
    assert hub.messages == ["first"]

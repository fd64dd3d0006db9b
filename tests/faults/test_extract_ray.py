"""The engine on a Ray cluster: the same files as without, also when a worker is killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import pytest

import made_media as made
import tiny_encoders as tiny
from affectrace import cli
from affectrace.features.config import ExtractConfig
from affectrace.features.extract import extract
from affectrace.features.extract_ray import TASK
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording

CONFIG = ExtractConfig(fps=Fraction(25), device="cpu")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    return f"mae-vit-b={tiny.mae(folder / 'mae')}", f"hubert-base={tiny.hubert(folder / 'hubert')}"


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    return [made.crops_and_sound(tmp_path, k, 9 + k, 24_000) for k in range(12)]


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("affectrace.features.extract_ray.find_spec", lambda name: None)
    argv = ["extract", str(tmp_path), "--features", "prosody", "--engine", "ray", "--out", str(tmp_path / "out")]
    made.write_sound(tmp_path / "a.wav", made.tone(0.1, 16_000), 16_000, "pcm_s16le")
    assert cli.main(argv) == 2
    said = "affectrace: engine 'ray' needs ray, which is not installed; pip install \"affectrace[ray]\"\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray alone takes a minute or two to start on a busy machine
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'affectrace[ray]'")
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker to kill in /proc")
def test_a_worker_is_killed_and_the_files_are_the_same(
    tmp_path: Path, names: tuple[str, str], recordings: list[Recording]
) -> None:
    recordings = [*recordings, Recording("gone", audio=tmp_path / "gone.wav")]
    local = extract(recordings, tmp_path / "local", names, CONFIG)
    killed: list[int] = []

    def kill(event: ProgressEvent) -> None:
        if event.done >= 3 and not killed and (pid := worker()) is not None:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    config = replace(CONFIG, engine="ray", workers=2)
    report = extract(recordings, tmp_path / "ray", names, config, progress=kill)
    assert killed
    assert list(report.failed) == list(local.failed) == ["gone"]
    assert report.made + report.kept == local.made
    mine, theirs = (
        {p.relative_to(tmp_path / e): p.read_bytes() for p in (tmp_path / e).glob("*/*.safetensors")}
        for e in ("ray", "local")
    )
    assert mine == theirs
    assert len(mine) == 2 * len(recordings) - 1


def worker() -> int | None:
    """A worker on a task (None: they are between two) that this process started, however many steps down."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if TASK.encode() in (path / "cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    mine: list[int] = []
    for pid in found:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            mine.append(pid)
    return mine[0] if mine else None

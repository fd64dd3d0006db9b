"""Commands on traces: outputs and refusals. No networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import made_media as made
import made_traces
from affectrace.cli import main
from affectrace.trace import Trace


def trace(name: str = "talk", n: int = 6, **provenance: object) -> Trace:
    valence, arousal = np.linspace((-0.5, 0), (0.5, 0.2), n).T
    return made_traces.trace(valence, arousal, recording_id=name, person="0", provenance=provenance)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("affectrace: ")
    return err


# ---- refusals


@pytest.mark.parametrize("command", ["report", "overlay", "summary", "export"])
def test_files_that_are_not_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    out = tmp_path / {"report": "r.html", "overlay": "o.mp4", "summary": "s.csv", "export": "new"}[command]
    for name in ("t.csv", "missing.csv"):
        assert main([command, str(tmp_path / name), "--out", str(out)]) == 2
        assert f"{name}: " in one_line(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_trace_is_never_overwritten_by_a_report_overlay_or_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = trace().save(tmp_path / "talk.csv")
    before = saved.read_bytes()
    for command, told in (
        ("report", "a report is an HTML page"),
        ("overlay", "an overlay is a video"),
        ("summary", "exists and is not a summary of affectrace"),
    ):
        more = ["--video", str(saved)] if command == "overlay" else []
        assert main([command, str(saved), *more, "--out", str(saved)]) == 2
        assert told in one_line(capsys)
    assert saved.read_bytes() == before


def test_an_overlay_never_replaces_its_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = made.write_video(tmp_path / "talk.mp4", range(6), size=(96, 64))
    before = video.read_bytes()
    saved = trace().save(tmp_path / "talk.csv")
    assert main(["overlay", str(saved), "--video", str(video), "--out", str(video)]) == 2
    assert "the overlay would replace its own recording" in one_line(capsys)
    assert video.read_bytes() == before


@pytest.mark.parametrize(("command", "name"), [("report", "r.html"), ("overlay", "o.mp4")])
def test_a_foreign_page_or_video_stays_and_our_own_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    video = made.write_video(tmp_path / "talk.mp4", range(6), size=(96, 64))
    saved = trace(input={"path": str(video)}).save(tmp_path / "talk.csv")
    mine, out = tmp_path / f"mine-{name}", tmp_path / name
    mine.write_bytes(b"<html>my own page</html>" if command == "report" else video.read_bytes())
    before = mine.read_bytes()
    assert main([command, str(saved), "--out", str(mine)]) == 2
    assert "of affectrace; it is left as it is; choose another --out" in one_line(capsys)
    assert mine.read_bytes() == before
    assert [main([command, str(saved), "--out", str(out), "--quiet"]) for _ in range(2)] == [0, 0]


def test_a_video_belongs_to_one_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = made.write_video(tmp_path / "talk.mp4", range(6), size=(96, 64))
    saved = [str(trace(name).save(tmp_path / f"{name}.csv")) for name in ("a", "b")]
    assert main(["report", *saved, "--video", str(video), "--out", str(tmp_path / "r.html")]) == 2
    assert "one video cannot belong to several recordings (a, b); leave out --video" in one_line(capsys)
    assert not (tmp_path / "r.html").exists()


def test_export_refuses_equal_names_and_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = trace().save(tmp_path / "a" / "talk.csv")
    b = trace(n=9).save(tmp_path / "b" / "talk.csv")
    assert main(["export", str(a), str(b), "--format", "json", "--out", str(tmp_path / "new")]) == 2
    assert "two traces have this name" in one_line(capsys)
    assert not (tmp_path / "new").exists()
    mine = tmp_path / "out" / "talk.json"
    mine.parent.mkdir()
    mine.write_text('{"my": "own"}')
    assert main(["export", str(a), "--format", "json", "--out", str(mine.parent)]) == 2
    assert "exists and was not written by affectrace" in one_line(capsys)
    c = trace().save(tmp_path / "c" / "earlier.csv")
    assert main(["export", str(c), str(a), "--format", "json", "--out", str(mine.parent)]) == 2
    assert mine.read_text() == '{"my": "own"}'
    assert [p.name for p in mine.parent.iterdir()] == ["talk.json"]


def test_summary_with_conditions_replaces_its_own_table_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        trace(name).save(tmp_path / "in" / f"{name}.csv")
    table = tmp_path / "c.csv"
    table.write_text("recording,condition\na,calm\nb,loud\n")
    for _ in range(2):
        assert (
            main(["summary", str(tmp_path / "in"), "--conditions", str(table), "--out", str(tmp_path / "s.csv")]) == 0
        )
    assert pd.read_csv(tmp_path / "s.csv")["condition"].tolist() == ["calm", "loud"]
    capsys.readouterr()
    table.write_text("recording,condition\na,calm\n")
    assert main(["summary", str(tmp_path / "in"), "--conditions", str(table)]) == 2
    assert "b: has no condition; add it to the table of conditions" in one_line(capsys)
    for content, told in (
        ("name,group\na,calm\n", "has no column 'recording'"),
        (f"recording,condition\na,{'x' * 140_000}\n", "c.csv: cannot be read (field larger"),
    ):
        table.write_text(content)
        assert main(["summary", str(tmp_path / "in"), "--conditions", str(table)]) == 2
        assert told in one_line(capsys)


def test_no_name_is_a_formula_in_a_summary(tmp_path: Path) -> None:
    trace("=1+2").save(tmp_path / "in" / "=1+2.csv")
    assert main(["summary", str(tmp_path / "in"), "--out", str(tmp_path / "s.csv")]) == 0
    assert pd.read_csv(tmp_path / "s.csv")["recording"].tolist() == ["'=1+2"]


# ---- choices


@pytest.mark.parametrize(
    ("media", "inside", "beside"),
    [("auto", True, False), ("inside", True, False), ("beside", False, True), ("none", False, False)],
)
def test_where_a_report_keeps_the_recording(tmp_path: Path, media: str, inside: bool, beside: bool) -> None:
    video = made.write_video(tmp_path / "talk.mp4", range(6), size=(96, 64))
    saved = trace(input={"path": str(video)}).save(tmp_path / "talk.csv")
    page = tmp_path / "r.html"
    assert main(["report", str(saved), "--out", str(page), "--media", media, "--quiet"]) == 0
    text = page.read_text()
    assert ('id="media-payload"' in text) is inside
    assert ("./talk.mp4" in text) is beside

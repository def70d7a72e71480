"""The file with a line for every episode: what it has, and that it stays within its bound."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from test_metrics import report

from launcher.metrics.episodes import Finished, NewEpisodes
from launcher.metrics.metrics import RunMetrics
from launcher.records import episode_log
from launcher.records.episode_log import EPISODES, append, rows
from launcher.records.records import Records
from launcher.rundir import RunDirectory
from pdqn.episodes import Episode
from pdqn.layers import build
from pdqn.logs import Bound


def read(folder: Path) -> list[dict[str, str]]:
    """Read the file as a program does that skips comments."""
    lines = (folder / EPISODES).read_text("ascii").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize("wanted", [True, False])
def test_every_episode_of_a_run_has_a_line(tmp_path: Path, wanted: bool):
    config = build(("test", {"system": {"pictures": False, "episodes": wanted}}))
    metrics = RunMetrics("coverage")
    records = Records(RunDirectory(tmp_path), config)
    report(metrics, "actor", episodes=[[1.5, 7, 0.25], [2.0, 8, 0.5]], environment_steps=15)
    report(metrics, "actor", index=3, episodes=[[-3.0, 9, None]], environment_steps=9)
    records.episodes(metrics, 2.5)
    records.episodes(metrics, 3.5)
    records.close()
    assert records.flush(10.0)
    assert (tmp_path / EPISODES).exists() is wanted
    if wanted:
        assert [list(row.values()) for row in read(tmp_path)] == [
            ["2.500", "24", "0", "1.5", "7", "0.25"],
            ["2.500", "24", "0", "2", "8", "0.5"],
            ["2.500", "24", "3", "-3", "9", ""],
        ]


def test_a_session_that_goes_on_adds_to_the_lines_of_the_last(tmp_path: Path):
    text = rows([Finished(0, Episode(1.0, 5))], 1.0, 5, 0)
    append(tmp_path, text)
    with (tmp_path / EPISODES).open("a") as file:
        file.write("2.0,10,0,1.")  # a kill
    append(tmp_path, text)
    found = read(tmp_path)
    assert [row["return"] for row in found] == ["1", "1.", "1"]


def test_the_file_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(episode_log, "_BOUND", Bound(4000, 1000, 1000, "# {} bytes left out\n"))
    for index in range(300):
        append(tmp_path, rows([Finished(index, Episode(1.0, 5))], 1.0, 5, 0))
    assert (tmp_path / EPISODES).stat().st_size < 4100
    actors = [int(row["actor"]) for row in read(tmp_path)]
    assert actors[:2] == [0, 1]
    assert actors[-1] == 299
    assert "bytes left out" in (tmp_path / EPISODES).read_text()


def test_episodes_that_have_no_room_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launcher.metrics.episodes._MOST_NEW", 2)
    new, episode = NewEpisodes(), Episode(1.0, 5)
    for _ in range(5):
        new.add(0, episode)
    finished, left_out = new.take()
    told: Any = rows(finished, 0.0, 0, left_out)
    assert told.splitlines()[-1] == "# 3 episodes were left out here"
    assert new.take() == ([], 0)

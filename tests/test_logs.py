"""Logs that grow while a run goes on: their first part and their last are kept, within a bound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pdqn.logs import LOG, Bound, keep_within

Eventually = Callable[..., Any]
SMALL = Bound(4000, 1000, 1000, "[{} bytes cut]\n")
JSON = Bound(4000, 1000, 1000, '{"event": "cut", "bytes": {}}\n')


def lines(count: int, start: int = 0) -> str:
    return "".join(f"line {number:05d}\n" for number in range(start, start + count))


def cut_bytes(text: str) -> int:
    (number,) = re.findall(r"\[(\d+) bytes cut\]", text)
    return int(number)


def test_a_log_within_its_bound_is_left_as_it_is(tmp_path: Path):
    log = tmp_path / "actor-0.log"
    keep_within(log, SMALL)  # there is none
    log.write_text(lines(300), encoding="utf-8")
    keep_within(log, SMALL)
    assert log.read_text(encoding="utf-8") == lines(300)


def test_a_cut_keeps_whole_lines_of_both_ends_and_counts_what_is_gone(tmp_path: Path):
    log = tmp_path / "actor-0.log"
    log.write_text(lines(1000), encoding="utf-8")
    keep_within(log, SMALL)
    text = log.read_text(encoding="utf-8")
    first, mark, last = re.split(r"(\[\d+ bytes cut\]\n)", text)
    assert lines(1000).startswith(first)
    assert lines(1000).endswith(last)
    assert len(first) + len(last) + cut_bytes(mark) == len(lines(1000))
    assert 900 < len(first) <= 1000
    assert 900 < len(last) <= 1000


def test_further_cuts_keep_the_first_part_and_one_mark_with_the_whole_count(tmp_path: Path):
    log = tmp_path / "actor-0.log"
    written = 0
    for turn in range(20):
        with log.open("a", encoding="utf-8") as file:
            written += file.write(lines(150, start=150 * turn))
        keep_within(log, SMALL)
        assert log.stat().st_size <= SMALL.most_bytes
    text = log.read_text(encoding="utf-8")
    kept = re.sub(r"\[\d+ bytes cut\]\n", "", text)
    assert text.startswith("line 00000\n")
    assert text.endswith("line 02999\n")
    assert len(kept) + cut_bytes(text) == written


@pytest.mark.parametrize("content", [b"x" * 9000, b"\n" * 9000, b"\xff\x00" * 4500])
def test_output_without_lines_is_cut_as_well(tmp_path: Path, content: bytes):
    log = tmp_path / "actor-0.log"
    log.write_bytes(content)
    keep_within(log, SMALL)
    kept = log.read_bytes()
    assert len(kept) < SMALL.most_bytes
    assert len(kept.replace(b"[", b"\n[").split(b" bytes cut]\n")) == 2


def test_events_stay_lines_of_json(tmp_path: Path):
    import json

    events = tmp_path / "events.jsonl"
    events.write_text('{"event": "ended"}\n' * 1000, encoding="utf-8")
    for _ in range(2):
        keep_within(events, JSON)
        with events.open("a", encoding="utf-8") as file:
            file.write('{"event": "ended"}\n' * 1000)
    found = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    assert [event["bytes"] for event in found if event["event"] == "cut"]


def test_the_writer_of_a_log_goes_on_at_its_new_end(tmp_path: Path):
    log = tmp_path / "actor-0.log"
    with log.open("a", encoding="utf-8", buffering=1) as writer:
        writer.write(lines(1000))
        keep_within(log, SMALL)
        writer.write("the end\n")
    assert log.read_text(encoding="utf-8").endswith("line 00999\nthe end\n")


WRITER = """
import os, sys, threading
from pathlib import Path
from pdqn.logs import Bound, OutputLog
log = OutputLog(Path(sys.argv[1]), Bound(4000, 1000, 1000, "[{} bytes cut]\\n"))
for number in range(20000):
    print("python", number, flush=True)
    os.system("echo of a child") if number == 10 else os.write(2, b"C code\\n")
    if number % 100 == 0:
        log.tend()
print("the end", flush=True)
log.tend()
"""


def test_what_a_process_and_its_children_print_is_bounded_and_a_removed_log_begins_again(
    tmp_path: Path, eventually: Eventually
):
    log = tmp_path / "logs" / "actor-0.log"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(log)]) as process:
        eventually(lambda: log.exists() and log.stat().st_size, 30)
        log.rename(log.with_name("moved"))
        assert process.wait(60) == 0
    text = log.read_text(encoding="utf-8")
    assert text.endswith("the end\n")
    assert len(text) <= SMALL.most_bytes
    assert "of a child" in log.with_name("moved").read_text(encoding="utf-8") + text


WITHOUT_ROOM = """
import os, sys
from pathlib import Path
from pdqn.logs import OutputLog
path = Path(sys.argv[1])
path.mkdir()  # nothing can be written in its place
log = OutputLog(path)
print("lost", flush=True)
log.tend()
path.rmdir()
log.tend()
print(log.trouble, flush=True)
"""


def test_a_process_whose_log_cannot_be_made_goes_on_and_opens_it_later(tmp_path: Path):
    log = tmp_path / "actor-0.log"
    subprocess.run([sys.executable, "-c", WITHOUT_ROOM, str(log)], check=True, timeout=60)
    assert log.read_text(encoding="utf-8") == f"{log}: Is a directory\n"


@pytest.mark.parametrize("hangs", [False, True], ids=["a pipe without a reader", "a disk"])
def test_a_log_that_does_not_open_keeps_no_process_waiting(tmp_path: Path, hangs: bool):
    log = tmp_path / "actor-0.log"
    os.mkfifo(log)
    code = WITHOUT_READER + (HUNG_DISK if hangs else "") + TROUBLE
    told = subprocess.run(
        [sys.executable, "-c", code, str(log)], check=True, timeout=60, capture_output=True
    )
    why = "it cannot be opened within 0.2 s" if hangs else "No such device or address"
    assert told.stderr.decode() == f"{log}: {why}\n"


WITHOUT_READER = """
import os, sys, time
from pathlib import Path
from pdqn import logs
before = os.dup(2)
"""
HUNG_DISK = """
logs._OPEN_SECONDS = 0.2
logs.OutputLog._open = lambda self: time.sleep(1000)
"""
TROUBLE = """
log = logs.OutputLog(Path(sys.argv[1]))
os.write(before, log.trouble.encode() + b"\\n")
"""


def test_the_bound_on_a_roles_log_leaves_room_to_cut():
    assert LOG.first_bytes + 2 * LOG.last_bytes < LOG.most_bytes <= 16 << 20

"""Functions that run in a process of their own, whatever they do to it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apart_functions as functions
import psutil
import pytest

from pdqn.apart import KEPT_BYTES, Apart, ApartError
from pdqn.errors import own_place

SECONDS = 60.0


@pytest.fixture
def apart() -> Iterator[Apart]:
    with contextlib.closing(Apart("environment")) as process:
        yield process


def asked(apart: Apart, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> Any:
    return apart.begin(function, *args, seconds=seconds).result()


def place(name: str, offset: int) -> str:
    code = getattr(functions, name).__code__
    return re.escape(f"({code.co_filename}:{code.co_firstlineno + offset})")


def test_functions_run_one_after_another_and_their_output_is_kept_apart(apart: Apart):
    assert [asked(apart, functions.add, 1, n) for n in range(3)] == [1, 2, 3]
    assert apart.output == 3 * "adding\n"
    assert asked(apart, functions.whole, 100_000) == [apart.pid] * 100_000
    # Ctrl-C reaches the process that asks, and that alone.
    assert asked(apart, functions.handle_signals) == (True, True)


@pytest.mark.parametrize("name", ["KeyError", "Odd", "KeyboardInterrupt"])
def test_whatever_is_raised_is_told_with_its_place(apart: Apart, name: str):
    with pytest.raises(ApartError, match=f"^{name}(Error)?: 1 {place('raise_it', 2)}$"):
        asked(apart, functions.raise_it, name)
    assert asked(apart, functions.add, 1, 1) == 2


def test_a_function_that_asks_for_the_end_is_told_with_what_it_printed_last(apart: Apart):
    words = "; it printed last: me: error: no such option"
    with pytest.raises(ApartError, match=f"^SystemExit: 2 {place('leave', 2)}{words}$"):
        asked(apart, functions.leave)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("exit", "its process ended with exit code 7"),
        ("segfault", f"its process was ended by SIGSEGV {place('end', 5)}"),
        ("kill", re.escape("its process was ended by SIGKILL (out of memory?)")),
    ],
)
def test_a_process_that_ends_is_told_with_what_it_printed_last(apart: Apart, how: str, told: str):
    task = apart.begin(functions.end, how, seconds=SECONDS)
    with pytest.raises(ApartError, match=f"^{told}; it printed last: the simulator has no licence"):
        task.result()


def test_the_longest_of_all_times_is_no_reason_to_fail(apart: Apart):
    assert asked(apart, functions.add, 1, 1, seconds=1e308) == 2


def test_a_function_that_hangs_is_told_with_its_place_and_ended(apart: Apart):
    task = apart.begin(functions.hang, seconds=1.0)
    assert not task.done()
    where = f"^no answer for 1 s {place('hang', 3)}; it printed last: loading level 1$"
    with pytest.raises(ApartError, match=where):
        task.result()
    apart.close()
    assert not psutil.pid_exists(apart.pid)


def test_one_that_prints_much_is_not_held_up_and_its_last_output_is_kept(apart: Apart):
    assert asked(apart, functions.print_much) == 5
    assert len(apart.output) == KEPT_BYTES


def test_threads_exit_handlers_and_children_keep_nothing_alive(apart: Apart):
    child = psutil.Process(asked(apart, functions.keep_going))
    apart.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_an_answer_does_not_wait_for_what_is_closed_after_it(apart: Apart):
    assert asked(apart, functions.answer_and_never_close) == 4
    assert not apart.is_ready(0.1)


def test_there_is_no_input(apart: Apart):
    with pytest.raises(ApartError, match=r"^EOFError: EOF when reading a line"):
        asked(apart, functions.read_line)


ENDS = """
import os, signal
import apart_functions as functions
from pdqn.apart import Apart
apart = Apart("environment")
apart.begin(functions.hang, seconds=600)
while not apart.output:
    pass
print(apart.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_with_the_process_that_asks():
    path = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))
    command, variables = [sys.executable, "-c", ENDS], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(10)
    assert not psutil.pid_exists(int(done.stdout))


def test_a_place_is_a_persons_own_if_there_is_one():
    python, package = contextlib.__file__, str(Path(pytest.__file__).parent / "x.py")
    ours, frozen = str(Path(functions.__file__).parents[1] / "pdqn" / "x.py"), "<frozen import>"
    numpy = str(Path(psutil.__file__).parents[1] / "numpy" / "x.py")
    assert own_place([(python, 1), (numpy, 2), (frozen, 3), ("/my.py", 4), (ours, 5)]) == "/my.py:4"
    assert own_place([(python, 1), (package, 2), ("/my.py", 3)]) == f"{package}:2"
    assert own_place([(python, 1), (ours, 2)]) == f"{python}:1"
    assert own_place([]) == ""


def test_it_leaves_the_processor_to_others_and_those_of_its_own_session_only():
    code = (
        "import os, pathlib; from pdqn.process import leave_processor\n"
        "path = pathlib.Path('/proc/self/autogroup')\n"
        # Empty for what was started before there were groups, as in some containers.
        "group = lambda: ((path.read_text() if path.exists() else '').split() or ['none'])[-1]\n"
        "before = group(); leave_processor(7); print(os.nice(0), before, group())"
    )
    for leads in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", code], start_new_session=leads, capture_output=True, check=True
        )
        own, before, after = done.stdout.decode().split()
        assert int(own) == os.nice(0) + 7
        assert after == (before if before == "none" or not leads else "7")

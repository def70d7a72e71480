"""A notebook that trains: executed as Jupyter executes one, with its own kernel."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow  # a kernel and four commands, each with imports of its own

SETTINGS = """
import pdqn
small = dict(
    mode="single", learner={"batch_size": 16}, network={"hidden": 16}, time=60,
    replay={"capacity": 5000, "min_size": 64}, evaluation={"episodes": 1, "period_seconds": 0.1},
    system={"pictures": False, "metrics_seconds": 0.2},
)
"""
TRAIN = "run = pdqn.train('CartPole-v1', steps=1500, **small)"
ITERATE = """
going = pdqn.launch('CartPole-v1', **small)
for snapshot in going:
    if snapshot['learner_steps'] > 0:
        break
print(snapshot.stage, going.stop()['exit_reason'])
"""
EVALUATE = (
    "print(run.evaluate(episodes=2)['episodes'], len(run.metrics()), run.summary['exit_reason'])"
)
MODULE = """%%writefile own_car.py
import gymnasium
def make(): return gymnasium.make("CartPole-v1")
"""
CELL = "def make(): pass\npdqn.train(make)"
OWN = "import own_car; print(pdqn.train(own_car.make, steps=50, **small).summary['exit_reason'])"
CELLS = (SETTINGS, TRAIN, ITERATE, "run.plot()", EVALUATE, MODULE, OWN)


def outputs(cell: Any, kind: str = "text/plain") -> str:
    """Join a cell's outputs of one kind; ``stream`` is what it prints."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and kind == "stream":
            parts.append(output.text)
        elif output.output_type in ("display_data", "execute_result"):
            parts.append(output.data.get(kind, ""))
    return "".join(parts)


def client_of(tmp_path: Path, *cells: str) -> NotebookClient:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    return NotebookClient(notebook, timeout=100, kernel_name="python3", resources=resources)


def test_a_notebook_trains_iterates_plots_and_evaluates(tmp_path: Path):
    client = client_of(tmp_path, *CELLS)
    cells = client.execute().cells
    assert "done  100%" in outputs(cells[1])
    assert '<progress max="1" value="1.0000">' in outputs(cells[1], "text/html")
    # The view is one output that is drawn over.
    assert len(cells[1].outputs) == 1
    assert outputs(cells[2], "stream") == "running interrupted\n"
    assert base64.b64decode(outputs(cells[3], "image/png")).startswith(b"\x89PNG")
    episodes, lines, reason = outputs(cells[4], "stream").split()
    assert (episodes, reason, int(lines) > 0) == ("2", "steps", True)
    assert outputs(cells[6], "stream") == "steps\n"


async def interrupted(client: NotebookClient) -> None:
    """Execute all cells, and press the stop button while the last but one trains."""
    *before, training, after = client.nb.cells
    async with client.async_setup_kernel():
        for index, cell in enumerate(before):
            await client.async_execute_cell(cell, index)
        task = asyncio.ensure_future(client.async_execute_cell(training, len(before)))
        while "steps" not in outputs(training):
            await asyncio.sleep(0.05)
        kernel: Any = client.km
        await kernel.interrupt_kernel()
        await task
        await client.async_execute_cell(after, len(before) + 1)


def test_the_stop_button_ends_a_run_in_order_and_the_kernel_goes_on(tmp_path: Path):
    client = client_of(tmp_path, SETTINGS, CELL, "pdqn.train('CartPole-v1', **small)", "1 + 1")
    client.allow_errors = True
    asyncio.run(asyncio.wait_for(interrupted(client), 100))
    refused, stopped = (client.nb.cells[index].outputs[-1] for index in (1, 2))
    assert refused.ename == "UsageError"
    assert "%%writefile my_code.py" in refused.evalue
    assert stopped.ename == "KeyboardInterrupt"
    assert outputs(client.nb.cells[3]) == "2"
    (run,) = tmp_path.glob("runs/*")
    assert "interrupted" in (run / "summary.json").read_text()
    assert (run / "final_model.pth").exists()
    assert not [p for p in psutil.process_iter() if str(run.name) in " ".join(p.cmdline())]

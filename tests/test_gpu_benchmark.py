"""The benchmark for a machine with a GPU: its frame, its wheels, and its stages on the CPU."""

from __future__ import annotations

import json
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_stages
from benchmarks.fetch_wheels import NAMES, download, pins
from benchmarks.gpu import Stage, missing, run_stages
from benchmarks.gpu_stages import NETWORKS, TINY_BATCHES, Findings, Setting

ROOT = Path(__file__).resolve().parent.parent
TINY = Setting("cpu", tiny=True)
# Each gets --result and a path, and --seconds and a number.
PROGRAMS = {
    "bad": "import sys; print('boom'); sys.exit(3)",
    "good": "import sys; open(sys.argv[2], 'w').write(open({out!r}).read())",
    "slow": "import sys, time; open(sys.argv[2], 'w').write('[7]'); time.sleep(60)",
}


def run(out: Path, *stages: Stage, seconds: float = 60.0) -> dict[str, Any]:
    document: dict[str, Any] = {"stages": {}}

    def command(name: str) -> list[str]:
        return [sys.executable, "-c", PROGRAMS[name].format(out=str(out))]

    run_stages(stages, command, document, out, time.monotonic() + seconds, {})
    assert json.loads(out.read_text(encoding="utf-8")) == document
    return document["stages"]


def test_a_stage_that_fails_is_recorded_at_once_and_the_next_one_runs(tmp_path: Path):
    stages = run(tmp_path / "gpu.json", Stage("bad", 30.0), Stage("good", 30.0))
    assert stages["bad"]["status"] == "failed"
    assert stages["bad"]["output"].strip() == "boom"
    assert stages["good"]["status"] == "ok"
    assert stages["good"]["result"]["stages"]["bad"]["status"] == "failed", "written before it ran"


def test_a_stage_beyond_its_time_is_ended_and_keeps_what_it_found(tmp_path: Path):
    found = run(tmp_path / "gpu.json", Stage("slow", 2.0))["slow"]
    assert (found["status"], found["result"]) == ("late", [7])


def test_a_stage_for_which_no_time_is_left_is_left_out(tmp_path: Path):
    stages = run(tmp_path / "gpu.json", Stage("bad", 30.0), seconds=0.0)
    assert stages == {"bad": {"status": "left out"}}


def test_all_stages_and_the_installation_fit_into_eight_minutes():
    assert {stage.name for stage in gpu.STAGES} == set(gpu_stages.STAGES)
    assert sum(stage.seconds for stage in gpu.STAGES) + gpu._INSTALL_SECONDS <= gpu.ALL_SECONDS
    assert gpu.ALL_SECONDS < 480


def test_only_distributions_that_are_missing_are_installed(tmp_path: Path):
    names = ["Farama_Notifications-0.0.1", "no_such_thing-1.0", "torch-9.0"]
    for name in names:
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    (tmp_path / "a note.txt").touch()
    assert [wheel.name.partition("-")[0] for wheel in missing(tmp_path)] == ["no_such_thing"]
    assert gpu.install(tmp_path / "nothing", tmp_path / "site") == {"wheels": []}


def test_wheels_are_fetched_for_all_that_a_run_needs_but_not_for_what_is_there():
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {plain(re.split(r"[><=]", line)[0]) for line in project["dependencies"]}
    there, unused = {"torch", "numba", "numpy"}, {"matplotlib"}  # draws pictures, which are off
    fetched = {plain(name) for name in NAMES}
    assert needed - fetched == there | unused
    assert all("==" in line for line in pins() if plain(line.split("=")[0]) != "nvidia-ml-py")
    assert "--no-deps" in download(Path("wheels"), pins())


# ---- stages, on the CPU with tiny sizes ----


@pytest.fixture
def one_thread(same_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread")
def test_a_device_without_memory_halves_the_parts_and_then_says_that_nothing_fits(tmp_path: Path):
    findings = Findings(tmp_path / "result.json")
    assert gpu_stages.memory(TINY, findings) == 0
    figures = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert figures["micro_batch_size"] == [8, 4]
    assert figures["told"] == [
        "out of GPU memory: a batch of 8 is computed 4 at a time from now on"
    ]
    assert figures["without_room"].startswith("out of GPU memory with one transition at a time")
    assert figures["goes_on"]


@pytest.mark.usefixtures("one_thread")
def test_the_prototype_of_a_graph_takes_the_learners_steps():
    findings = Findings()
    assert gpu_stages.graphs(TINY, findings) == 0
    assert len(findings.figures) == len(NETWORKS) * len(TINY_BATCHES)
    for found in findings.figures.values():
        # Adam makes much of the rounding of gradients near 0.
        assert found["parameter_difference"] < 0.01 * found["parameters_moved"]


@pytest.mark.usefixtures("one_thread")
def test_every_network_and_precision_has_its_rates_and_its_first_step_compared():
    findings, compared = Findings(), Findings()
    assert gpu_stages.rates(TINY, findings) == gpu_stages.precision(TINY, compared) == 0
    assert len(findings.figures) == len(NETWORKS) * len(TINY_BATCHES) * 2
    assert all(found["step"] > 0 and found["staged"] > 0 for found in findings.figures.values())
    for found in compared.figures.values():
        assert found["priority_difference"] < 0.1 * found["priority_mean"]


def test_a_stage_that_runs_out_of_time_leaves_the_rest_out():
    findings = Findings()
    assert gpu_stages.rates(Setting("cpu", tiny=True, seconds=0.0), findings) == 0
    assert findings.figures == {"left_out_after": "mlp, 4, float32"}

"""Files are data: nothing that a file of another person names runs without permission."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import pytest
import torch

import pdqn
from actors.best import BestKeeper
from actors.environments.describe import describe_environment
from launcher.cli.main import main
from launcher.results.pictures import draw_pictures, may_run
from launcher.run.state import RunState
from pdqn.config import Config, NetworkConfig, RunConfig
from pdqn.errors import NotTrustedError, UsageError
from pdqn.layers import CONFIG, CONFIGURED, build
from pdqn.model import load_model, read_model, save_model
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec
from pdqn.trust import NOTHING, Trust, is_own, names_code, shown

if TYPE_CHECKING:
    from conftest import StartCommand

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
pytestmark = pytest.mark.usefixtures("same_threads")

CARTPOLE = "CartPole-v1"
PLACEMENT = "pdqn/CirclePlacement-v0"
STRANGER = 12_345  # a user id
# A module whose import leaves a mark, and that works for a person who wants it.
MODULE = """
import pathlib
pathlib.Path({mark!r}).touch()
import gymnasium
from pdqn.networks import build_network
from dataclasses import replace

def make(**env_args):
    return gymnasium.make("CartPole-v1")

def network(spec, config):
    return build_network(spec, replace(config, kind="mlp"))
"""


class Folder:
    """A current directory that holds a module, and files that name it."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, path / "mark"
        (path / "stranger.py").write_text(MODULE.format(mark=str(self.mark)))
        self.command = f"touch {self.mark}"

    @property
    def ran(self) -> bool:
        return self.mark.exists()

    def model(self, name: str = "policy.pth", **changes: Any) -> Path:
        """Write a model of CartPole that names another environment or network."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        config = configuration(**changes)
        spec = replace(describe_environment(CARTPOLE, {}), id=config.run.env)
        network = build_network(spec, NetworkConfig(kind="mlp", hidden=config.network.hidden))
        save_model(path, config, spec, network, 7)
        return path

    def run(self, name: str = "run", **changes: Any) -> Path:
        """Write a run directory whose model agrees with its configuration."""
        config = configuration(**changes)
        path = self.model(f"{name}/final_model.pth", **changes).parent
        for file in (CONFIG, CONFIGURED):
            (path / file).write_text(config.to_toml())
        (path / "metrics.jsonl").write_text("")
        return path


def configuration(env: str = CARTPOLE, kind: str = "mlp", **env_args: Any) -> Config:
    plain = build(("test", {"run": {"seed": 1}, "network": {"hidden": 16}}))
    run = replace(plain.run, env=env, env_args=env_args, mode="single", steps=60, frame_stack=1)
    small = build(
        (
            "test",
            {
                "replay": {"capacity": 500, "min_size": 20},
                "learner": {"batch_size": 8},
                "evaluation": {"enabled": False},
                "system": {"pictures": False},
            },
        )
    )
    return replace(small, run=run, network=replace(plain.network, kind=kind, layers=2))


def give_away(path: Path) -> None:
    """Make a directory and its files another user's."""
    for file in (path, *path.rglob("*")):
        os.chown(file, STRANGER, STRANGER)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return Folder(tmp_path)


@pytest.fixture
def pdqn_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """``pdqn_main(*arguments)`` runs a command in this process: its code, and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pdqn", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, capsys.readouterr().err

    return run


Main = Callable[..., tuple[int, str]]


def is_refused(answer: tuple[int, str], *parts: str) -> bool:
    """Check that an answer is one line, exit code 2, with these parts."""
    code, told = answer
    assert code == 2, told
    assert told.startswith("pdqn: "), told
    assert told.count("\n") == 1, told
    assert all(part in told for part in parts), told
    return True


# ---- model files ----


def test_a_model_file_that_names_a_command_does_not_run_it(folder: Folder, pdqn_main: Main):
    path = folder.model(env="os:system", command=folder.command)
    answer = pdqn_main("eval", path, "--episodes", "1")
    assert answer == (
        2,
        f"pdqn: {path}: its environment is os:system, which would run code; if you trust it, give "
        "--env os:system, or --trust\n",
    )
    assert not folder.ran


@pytest.mark.parametrize("command", ["eval", "export"])
@pytest.mark.parametrize("kind", ["stranger:network", "os:system"])
def test_a_model_file_imports_no_network(folder: Folder, pdqn_main: Main, command: str, kind: str):
    path = folder.model(kind=kind)
    options = ["--onnx", folder.path / "policy.onnx"] if command == "export" else []
    assert is_refused(
        pdqn_main(command, path, *options),
        f"its network is {kind}, which would run code; if you trust it, give --network {kind}",
    )
    assert not folder.ran
    assert "stranger" not in sys.modules


def test_a_program_imports_no_network_unless_it_trusts_the_file(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(folder.path)
    path = folder.model(kind="stranger:network")
    with pytest.raises(NotTrustedError, match=r"stranger:network, .* give trust=True$"):
        pdqn.load_policy(path)
    assert not folder.ran
    assert pdqn.load_policy(path, trust=True).model.parameter_version == 7
    assert folder.ran


def test_the_current_directory_is_not_searched_before_something_in_it_is_named(
    folder: Folder, pdqn_main: Main
):
    pdqn_main("eval", folder.model(), "--episodes", "1", "--json")
    assert str(folder.path) not in sys.path
    pdqn_main("eval", folder.model(env="stranger:make"), "--trust", "--episodes", "1", "--json")
    assert str(folder.path) in sys.path


@pytest.mark.parametrize("options", [["--env", "stranger:make"], ["--trust"]])
def test_a_person_who_names_the_environment_gets_it(
    folder: Folder, pdqn_main: Main, options: list[str]
):
    path = folder.model(env="stranger:make", level=3)
    assert is_refused(pdqn_main("eval", path), "--env stranger:make")
    assert not folder.ran
    assert pdqn_main("eval", path, "--episodes", "1", "--json", *options) == (0, "")
    assert folder.ran


def test_a_named_environment_replaces_the_files(folder: Folder, pdqn_main: Main):
    path = folder.model(env="os:system", command=folder.command)
    options = ["--episodes", "1", "--json"]
    assert pdqn_main("eval", path, "--env", "stranger:make", *options) == (0, "")
    told = pdqn_main("eval", path, "--env", "stranger:another", *options)
    assert is_refused(told, "environment stranger:another: stranger has no function another")


def test_a_named_environment_must_fit_the_model(folder: Folder, pdqn_main: Main):
    path = folder.model(env="os:system")
    answer = pdqn_main("eval", path, "--env", "MountainCar-v0", "--episodes", "1")
    assert is_refused(answer, "is for another environment than MountainCar-v0: its fields")


@pytest.mark.parametrize("options", [["--network", "stranger:network"], ["--trust"]])
def test_a_person_who_names_the_network_gets_it(
    folder: Folder, pdqn_main: Main, options: list[str]
):
    path = folder.model(kind="stranger:network")
    assert pdqn_main("eval", path, "--episodes", "1", "--json", *options) == (0, "")
    assert folder.ran


def test_permission_for_one_name_is_not_permission_for_another(folder: Folder, pdqn_main: Main):
    path = folder.model(env="os:system", kind="stranger:network", command=folder.command)
    assert is_refused(pdqn_main("eval", path, "--env", "os:system"), "--network stranger:network")
    assert is_refused(pdqn_main("eval", path, "--network", "stranger:network"), "--env os:system")
    assert not folder.ran


def test_a_registered_environment_needs_no_permission(folder: Folder, pdqn_main: Main):
    assert pdqn_main("eval", folder.model(), "--episodes", "1", "--json") == (0, "")


# What environments make of texts: gymnasium imports the module of an id, and so do others.
CODE = [
    {"env_id": "stranger:CartPole-v1"},
    {"make_kwargs": {"inner": ["plain", "os:system"]}},
    {"entry_point": "stranger.make"},
    {"vector_kwargs": {"worker": "stranger:make"}},
    {"wrappers": ["stranger.Wrapper"]},
]
DATA: list[dict[str, Any]] = [
    {"level": 3, "map": [["wall", "door"], (1, 2.5)]},
    {"path": "C:\\maps"},
    {"at": "12:30"},
    {"where": "https://example.com/map"},
    {"text": "hello, world. And more."},
    {"rate": "0.5"},
]


@pytest.mark.parametrize("env_args", CODE)
def test_arguments_that_could_name_code_need_permission(
    folder: Folder, pdqn_main: Main, env_args: dict[str, Any]
):
    path = folder.model(env="GymV26Environment-v0", **env_args)
    assert is_refused(pdqn_main("eval", path), "its argument ", "which could run code", "--trust")
    assert not folder.ran


@pytest.mark.parametrize("env_args", DATA)
def test_other_arguments_are_data(env_args: dict[str, Any]):
    NOTHING.check_environment("file:", CARTPOLE, env_args)


def test_the_arguments_of_a_named_environment_are_data_but_for_a_module_and_its_name():
    named = Trust(frozenset({"Ant-v5"}))
    with pytest.raises(NotTrustedError, match=r"give --env Ant-v5, or --trust$"):
        NOTHING.check_environment("file:", "Ant-v5", {"xml_file": "ant.xml"})
    named.check_environment("file:", "Ant-v5", {"xml_file": "ant.xml"})
    with pytest.raises(NotTrustedError, match=r"env_id is os:system, .* give --trust$"):
        named.check_environment("file:", "Ant-v5", {"env_id": "os:system"})
    Trust(everything=True).check_environment("file:", "a:b", {"env_id": "os:system"})


def test_a_refusal_does_nothing_to_a_terminal_or_a_shell():
    with pytest.raises(NotTrustedError) as refused:
        NOTHING.check_environment("file:", "os:\x1b[2Jsystem\n", {})
    told = str(refused.value)
    assert told.isprintable()
    assert "--env NAME" in told
    with pytest.raises(NotTrustedError, match=r"--env 'a:b; rm -rf x'"):
        NOTHING.check_environment("file:", "a:b; rm -rf x", {})
    assert len(shown("x" * 1000)) < 100


def test_only_names_of_modules_count_as_code():
    assert names_code("a:b", "mlp")
    assert names_code(CARTPOLE, "a:b")
    assert names_code(CARTPOLE, "auto", {"inner": "a:b"})
    assert not names_code(CARTPOLE, "auto", {"inner": "plain", "n": 3})


# ---- run directories ----


def test_an_own_run_directory_goes_on_as_before(folder: Folder, pdqn_main: Main):
    run = folder.run(env="stranger:make", kind="stranger:network", level="a:b")
    for path in (run, run / "final_model.pth"):
        assert pdqn_main("eval", path, "--episodes", "1", "--json") == (0, "")
    assert pdqn.load_policy(run).model.parameter_version == 7


@pytest.mark.parametrize(
    "other",
    [{"env": "os:system"}, {"kind": "os:system"}, {"level": 4}],
    ids=["environment", "network", "arguments"],
)
def test_a_model_that_differs_from_its_directory_is_a_strangers(
    folder: Folder, pdqn_main: Main, other: dict[str, Any]
):
    """A learner on another host has written it."""
    own: dict[str, Any] = {"env": "stranger:make", "kind": "stranger:network", "level": 3}
    run = folder.run(**own)
    folder.model("run/final_model.pth", **{**own, **other})
    assert is_refused(pdqn_main("eval", run), "which would run code")
    assert not folder.ran


def test_a_copy_of_a_model_elsewhere_is_a_strangers(folder: Folder, pdqn_main: Main):
    run = folder.run(env="stranger:make")
    copy = folder.path / "copy.pth"
    copy.write_bytes((run / "final_model.pth").read_bytes())
    assert is_refused(pdqn_main("eval", copy), "--env stranger:make")


@pytest.mark.parametrize("open_to_all", [".", CONFIG, "final_model.pth"])
def test_what_everybody_may_write_is_not_own(folder: Folder, pdqn_main: Main, open_to_all: str):
    run = folder.run(env="stranger:make")
    (run / open_to_all).chmod(0o777)
    assert is_refused(pdqn_main("eval", run), "--env stranger:make")
    assert not folder.ran


@needs_root
@pytest.mark.parametrize("theirs", [".", CONFIG, "final_model.pth"])
def test_what_another_user_owns_is_not_own(folder: Folder, pdqn_main: Main, theirs: str):
    run = folder.run(env="stranger:make")
    os.chown(run / theirs, STRANGER, STRANGER)
    assert not is_own(run / theirs)
    assert is_refused(pdqn_main("eval", run), "--env stranger:make")
    assert not folder.ran


@needs_root
@pytest.mark.parametrize("open_to_group", [".", CONFIG, "final_model.pth"])
def test_what_a_group_may_write_is_not_own(folder: Folder, pdqn_main: Main, open_to_group: str):
    run = folder.run(env="stranger:make")
    os.chown(run / open_to_group, os.geteuid(), STRANGER)
    (run / open_to_group).chmod(0o770)
    assert is_refused(pdqn_main("eval", run), "--env stranger:make")
    assert not folder.ran


def test_what_a_group_of_one_may_write_is_own(folder: Folder, pdqn_main: Main):
    """Some systems give every user a group, and everything is open to it."""
    user = pwd.getpwuid(os.geteuid())
    group = grp.getgrgid(user.pw_gid)
    run = folder.run(env="stranger:make")
    for path in (run, *run.iterdir()):
        os.chown(path, -1, user.pw_gid)
        path.chmod(0o770)
    alone = group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    assert is_own(run) == alone


@needs_root
def test_a_file_that_is_exchanged_while_it_is_looked_at_is_not_own(
    folder: Folder, pdqn_main: Main, monkeypatch: pytest.MonkeyPatch
):
    """Its directory is another user's, who has it lead to an own run while that is looked at."""
    run = folder.run("own", env="stranger:make")
    theirs = folder.run("theirs", env="os:system", command=folder.command)
    give_away(theirs)
    link = folder.path / "link"
    link.symlink_to(theirs)
    stat = Path.stat

    def honest(path: Path, **how: Any) -> os.stat_result:
        return stat(run / path.name if path.parent == link else run if path == link else path)

    monkeypatch.setattr(Path, "stat", honest)
    assert is_refused(pdqn_main("eval", link), "its environment is os:system")
    assert is_refused(pdqn_main("launch", "--resume", link, "--steps", "99"), "os:system")
    config = link / CONFIG
    assert is_refused(pdqn_main("launch", "--config", config), "os:system")
    assert not folder.ran


def test_what_is_missing_is_not_own(tmp_path: Path):
    assert not is_own(tmp_path / "nowhere")


# ---- launch: --resume and --config ----


@needs_root
def test_a_directory_of_another_user_is_not_resumed_with_code_of_its_own(
    folder: Folder, pdqn_main: Main
):
    run = folder.run(env="os:system", command=folder.command)
    give_away(run)
    answer = pdqn_main("launch", "--resume", run, "--steps", "99")
    assert is_refused(answer, f"--resume {run}: its environment is os:system", "--trust")
    assert not folder.ran


@needs_root
@pytest.mark.parametrize("changed", [CONFIG, CONFIGURED])
def test_one_file_of_another_user_is_enough(folder: Folder, pdqn_main: Main, changed: str):
    run = folder.run(kind="stranger:network")
    os.chown(run / changed, STRANGER, STRANGER)
    answer = pdqn_main("launch", "--resume", run)
    assert is_refused(answer, "its network is stranger:network", "--set network.kind=stranger:")
    assert not folder.ran


@needs_root
@pytest.mark.parametrize(
    "options", [["--trust"], ["--env", "stranger:make"]], ids=["trust", "named"]
)
def test_a_directory_of_another_user_is_resumed_with_permission(
    folder: Folder, pdqn_main: Main, options: list[str]
):
    run = folder.run(env="stranger:make")
    give_away(run)
    code, told = pdqn_main("launch", "--resume", run, "--console", "off", *options)
    assert code == 0, told
    assert folder.ran


def test_an_own_directory_is_resumed_without_permission(folder: Folder, pdqn_main: Main):
    run = folder.run(env="stranger:make", kind="stranger:network")
    code, told = pdqn_main("launch", "--resume", run, "--console", "off")
    assert code == 0, told


@needs_root
@pytest.mark.parametrize("command", ["launch", "check"])
def test_a_configuration_of_another_user_runs_no_code(
    folder: Folder, pdqn_main: Main, command: str
):
    file = folder.path / "theirs.toml"
    file.write_text(f'[run]\nenv = "os:system"\nenv_args = {{command = "{folder.command}"}}\n')
    os.chown(file, STRANGER, STRANGER)
    answer = pdqn_main(command, "--config", file)
    assert is_refused(answer, f"file {file}: its environment is os:system", "--trust")
    assert not folder.ran


@needs_root
def test_a_configuration_of_another_user_is_data(folder: Folder, pdqn_main: Main):
    file = folder.path / "theirs.toml"
    os.chown(folder.path, STRANGER, STRANGER)
    text = '[run]\nenv = "stranger:make"\n[network]\nkind = "stranger:network"\n'
    file.write_text(text)
    os.chown(file, STRANGER, STRANGER)
    # What the person says overrides the file, which then names nothing.
    options = ["--env", CARTPOLE, "--set", "network.kind=mlp", "--json"]
    assert pdqn_main("check", "--config", file, *options)[0] == 0
    assert not folder.ran
    named = ["--env", "stranger:make", "--set", "network.kind=stranger:network", "--json"]
    assert pdqn_main("check", "--config", file, *named)[0] == 0
    assert folder.ran


@needs_root
def test_arguments_in_a_configuration_of_another_user_name_no_code(folder: Folder, pdqn_main: Main):
    file = folder.path / "theirs.toml"
    for section in ("run", "evaluation"):
        file.write_text(f'[{section}.env_args]\nmap_size = 16\ninner = "os:system"\n')
        os.chown(file, STRANGER, STRANGER)
        assert is_refused(pdqn_main("check", "--config", file), "its argument inner is os:system")


def test_an_own_configuration_names_modules_as_before(folder: Folder, pdqn_main: Main):
    file = folder.path / "own.toml"
    file.write_text('[run]\nenv = "stranger:make"\n')
    assert pdqn_main("check", "--config", file, "--json")[0] == 0
    assert folder.ran


# ---- what the head of a run draws ----


def placement_run(folder: Folder, **other: Any) -> tuple[Path, Config]:
    """Write a run of circle placement; ``other`` is in the model only."""
    run = folder.path / "run"
    run.mkdir()
    given = {"map_size": 16, "radii": [2, 1]}
    config = Config(run=RunConfig(env=PLACEMENT, env_args=given))
    (run / CONFIG).write_text(config.to_toml())
    (run / "metrics.jsonl").write_text("")
    RunState(circle_placement=True).write(run)
    spec = describe_environment(PLACEMENT, given)
    theirs = replace(config, run=replace(config.run, env_args=given | other.pop("env_args", {})))
    network = build_network(spec, config.network)
    save_model(run / "final_model.pth", theirs, replace(spec, **other), network, 7)
    return run, config


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"id": "os:system"}, "os:system"),
        ({"env_args": {"inner": "stranger:make"}}, "stranger:make"),
        ({"env_args": {"map_size": 4000}}, "is not of this run: its arguments"),
        ({"num_actions": 10**8}, "another environment than .*: its num_actions is 256"),
    ],
    ids=["environment", "code", "arguments", "size"],
)
def test_a_head_draws_nothing_that_differs_from_its_own_configuration(
    folder: Folder, other: dict[str, Any], told: str
):
    run, config = placement_run(folder, **other)
    with pytest.raises(UsageError, match=told):
        draw_pictures(run, may_run(config.run.env, config.network.kind))
    assert not folder.ran


def test_a_head_draws_the_model_of_its_own_run(folder: Folder):
    run, config = placement_run(folder)
    drawn = draw_pictures(run, may_run(config.run.env, config.network.kind))
    assert [path.name for path in drawn] == ["training_results.png", "strategy.png"]


@needs_root
def test_plots_of_another_users_directory_run_no_code(folder: Folder, pdqn_main: Main):
    run = folder.run(env="stranger:make")
    RunState(circle_placement=True).write(run)
    give_away(run)
    assert is_refused(pdqn_main("plot", run), "its environment is stranger:make")
    assert not folder.ran
    assert is_refused(pdqn_main("plot", run, "--trust"), "no single CirclePlacementEnv to draw")
    assert folder.ran


@needs_root
def test_arguments_of_training_alone_are_looked_at_before_a_picture(
    folder: Folder, pdqn_main: Main
):
    """The model has those of evaluation, which may replace them."""
    run, config = placement_run(folder)
    theirs = replace(
        config,
        run=replace(config.run, env_args={"map_size": "os:system", "radii": [2, 1]}),
        evaluation=replace(config.evaluation, env_args={"map_size": 16}),
    )
    (run / CONFIG).write_text(theirs.to_toml())
    give_away(run)
    assert is_refused(pdqn_main("plot", run), "its argument map_size is os:system")


def test_the_best_score_is_read_without_building_what_the_file_names(folder: Folder):
    """A host's evaluator gets this file from the head."""
    path = folder.model("best_model.pth", kind="stranger:network")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"score": 3.5}, path)
    assert BestKeeper(path, Config(), read_model(path).spec).score == 3.5
    assert not folder.ran


# ---- a process of its own ----


def test_a_real_command_runs_nothing_from_a_folder_with_a_strangers_files(
    folder: Folder, pdqn_command: StartCommand
):
    path = folder.model(env="stranger:make", kind="stranger:network")
    with pdqn_command("eval", str(path), directory=folder.path) as command:
        assert command.wait() == 2
    assert command.stderr.count("\n") == 1
    assert "stranger:network, which would run code" in command.stderr
    assert not folder.ran
    named = ["--env", "stranger:make", "--network", "stranger:network", "--episodes", "1"]
    with pdqn_command("eval", str(path), *named, directory=folder.path) as command:
        assert command.wait() == 0, command.stderr
    assert folder.ran


def test_an_optional_package_is_not_taken_from_the_folder_of_a_strangers_files(folder: Folder):
    """Without its package, an id of MinAtar must not import what lies beside the file."""
    path = folder.model(env="Nowhere/Game-v0")
    (folder.path / "optional.py").write_text(f"open({str(folder.mark)!r}, 'w')")
    code = (
        "import sys\n"
        "from unittest import mock\n"
        "from launcher.cli.main import main\n"
        "from actors.environments import making\n"
        "def missing(env_id):\n"
        "    import optional\n"
        "making.MINATAR, making._register_minatar = 'Nowhere/', missing\n"
        f"sys.argv = ['pdqn', 'eval', {str(path)!r}]\n"
        "main()\n"
    )
    program = folder.path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, str(program)], cwd=folder.path, capture_output=True, text=True, timeout=100
    )
    assert "No module named 'optional'" in done.stderr
    assert not folder.ran


def test_gymnasium_is_what_imports_the_module_of_an_id(folder: Folder):
    """The check looks for a colon because gymnasium does."""
    sys.path.append(str(folder.path))
    with pytest.raises(gymnasium.error.Error):
        gymnasium.make("stranger:Nowhere-v0")
    assert folder.ran
    spec: EnvironmentSpec = describe_environment(CARTPOLE, {})
    with pytest.raises(NotTrustedError):
        NOTHING.check_environment("file:", "stranger:Nowhere-v0", {})
    assert load_model(folder.model()).spec == spec

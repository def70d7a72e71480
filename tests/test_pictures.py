"""Pictures of a policy's play, comparisons of runs, and films."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageSequence

from actors.environments.describe import describe_environment
from launcher.results import circle_placement, compare, films
from launcher.results.circle_placement import draw_strategy
from launcher.results.compare import band, draw_comparison, grouped
from launcher.results.films import check_camera, check_film, record_film
from launcher.results.pictures import PictureDrawer, draw_pictures
from launcher.results.training import plot_training
from launcher.run.state import RunState
from launcher.rundir import RunDirectory
from pdqn.config import Config, NetworkConfig, RunConfig, SystemConfig
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import Model, load_model, save_model
from pdqn.networks import build_network

Eventually = Callable[..., Any]
PLACEMENT = "pdqn/CirclePlacement-v0"
SIGNATURES = {
    "png": b"PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"JFIF", "jpeg": b"JFIF",
    "webp": b"WEBP",
}  # fmt: skip


def model_of(path: Path, env: str, **env_args: Any) -> Model:
    torch.manual_seed(1)
    spec = describe_environment(env, env_args)
    config = Config(run=RunConfig(env=env, env_args=env_args), network=NetworkConfig())
    save_model(path, config, spec, build_network(spec, config.network), 7)
    return load_model(path)


def run_of(path: Path, score: float = 1.0, **changes: Any) -> Path:
    """Write a run directory with a rising curve."""
    directory = RunDirectory(path)
    config = build(("test", {"run": {"env": "CartPole-v1"}}), ("changes", changes))
    directory.write_config(config, config)
    for step in range(1, 6):
        line = {"environment_steps": 100 * step, "time_seconds": float(step), "time/fps": 100.0}
        directory.metrics({**line, "rollout/ep_rew_mean": score * step})
        evaluation = {"eval/return_mean": score * step, "eval/baseline/random": 0.5}
        directory.metrics({**line, **evaluation})
    directory.close()
    return path


# ---- strategy ----


def test_the_strategy_is_drawn_beside_exact_greedys(tmp_path: Path):
    model = model_of(tmp_path / "m.pth", PLACEMENT, map_size=16, radii=[3, 2, 1])
    path = draw_strategy(model, tmp_path / "strategy.png")
    with Image.open(path) as picture:
        assert picture.size == (1040, 1104)
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_an_untrained_policys_circles_are_exact_greedys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The network knows the immediate reward, so both pictures must be the same.
    model = model_of(tmp_path / "m.pth", PLACEMENT, map_size=16, radii=[3, 2, 1])
    shown: dict[str, list[Any]] = {"policy": [], "exact": []}

    def keep(_: Any, title: str, picture: Any) -> None:
        shown[title.split()[0].removesuffix(",")].append(picture)

    monkeypatch.setattr(circle_placement, "_show", keep)
    draw_strategy(model, tmp_path / "strategy.png")
    assert len(shown["policy"]) == len(shown["exact"]) == 3
    for ours, greedys in zip(shown["policy"], shown["exact"], strict=True):
        np.testing.assert_array_equal(ours, greedys)


def test_a_run_of_circle_placement_has_both_pictures_and_others_have_one(tmp_path: Path):
    other = run_of(tmp_path / "other")
    assert [path.name for path in draw_pictures(other)] == ["training_results.png"]
    run = run_of(tmp_path / "run", run={"env": PLACEMENT, "env_args": {"map_size": 16}})
    assert [path.name for path in draw_pictures(run)] == ["training_results.png"]
    model_of(run / "final_model.pth", PLACEMENT, map_size=16)
    names = ["training_results.png", "strategy.png"]
    assert [path.name for path in draw_pictures(run)] == names


def test_a_run_that_says_it_is_another_environment_is_believed_without_its_model(tmp_path: Path):
    run = run_of(tmp_path / "run")
    (run / "final_model.pth").write_bytes(b"damaged: whoever loads it fails")
    RunState(circle_placement=False).write(run)
    assert [path.name for path in draw_pictures(run)] == ["training_results.png"]


# ---- while a run goes on ----


def drawn_every(seconds: float) -> Config:
    return Config(system=SystemConfig(picture_seconds=seconds))


def test_pictures_are_drawn_again_and_again_beside_the_run(tmp_path: Path, eventually: Eventually):
    run = run_of(tmp_path / "run")
    drawer = PictureDrawer(run, drawn_every(0.1), tmp_path / "pictures.log")
    picture = run / "training_results.png"

    def drawn() -> bool:
        drawer.turn()
        return picture.exists()

    for _ in range(2):
        eventually(drawn, 60)
        picture.unlink()
    drawer.close()
    assert (tmp_path / "pictures.log").read_text() == ""


def test_a_drawing_that_goes_on_is_ended_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "executable", "/bin/cat")  # waits forever for its input
    drawer = PictureDrawer(tmp_path, drawn_every(1e-9), tmp_path / "pictures.log")
    time.sleep(0.01)
    drawer.turn()
    drawer.close()
    drawer.close()


# ---- comparison ----


def test_runs_that_differ_by_their_seed_alone_are_one_group(tmp_path: Path):
    runs = [
        run_of(tmp_path / f"{n}-{seed}", run={"seed": seed}, actor={"n_step": n})
        for n in (1, 3)
        for seed in (1, 2)
    ]
    groups = grouped(runs)
    labels = ["actor.n_step = 1 (2 seeds)", "actor.n_step = 3 (2 seeds)"]
    assert [group.label for group in groups] == labels
    assert [len(group.runs) for group in groups] == [2, 2]


def test_a_run_that_was_resumed_stays_in_its_group(tmp_path: Path):
    chosen = {"network": {"kind": "mlp", "hidden": 256}}
    runs = []
    for seed, known in ((1, {}), (2, chosen)):
        given = {"run": {"env": "CartPole-v1", "seed": seed}}
        runs.append(run_of(tmp_path / str(seed), run={"seed": seed}))
        directory = RunDirectory(runs[-1], 10.0)
        configured = build(("given", given), ("chosen", known))
        directory.write_config(build(("given", given), ("chosen", chosen)), configured)
        directory.close()
    assert [group.label for group in grouped(runs)] == ["1 (2 seeds)"]


def test_a_band_is_the_mean_and_the_range_where_all_curves_are_known():
    first = np.array([0.0, 10.0]), np.array([0.0, 10.0])
    second = np.array([2.0, 8.0]), np.array([4.0, 10.0])
    x, mean, least, largest = band([first, second, (np.empty(0), np.empty(0))])
    assert (x[0], x[-1]) == (2.0, 8.0)
    np.testing.assert_allclose(least, x)
    np.testing.assert_allclose(largest, x + 2)
    np.testing.assert_allclose(mean, x + 1)
    assert all(len(part) == 0 for part in band([]))


def evaluated_run(path: Path, scores: dict[int, float], **run: Any) -> Path:
    """Write a run directory with evaluations by step, and as many lines of training."""
    directory = RunDirectory(path)
    config = build(("test", {"run": {"env": "CartPole-v1", **run}}))
    directory.write_config(config, config)
    for step, score in scores.items():
        line = {"environment_steps": step, "time_seconds": step / 100}
        directory.metrics({**line, "rollout/ep_rew_mean": score})
        directory.metrics({**line, "eval/return_mean": score})
    directory.close()
    return path


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Axes]]:
    """Provide a comparison of runs that returns its panels."""

    def draw(*runs: Path) -> list[Axes]:
        figures: list[Figure] = []
        monkeypatch.setattr(
            compare, "save_picture", lambda figure, *_, **__: figures.append(figure)
        )
        draw_comparison(runs, tmp_path / "comparison.png")
        return figures[0].axes

    return draw


Compared = Callable[..., list[Axes]]


def lines_in(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if len(np.asarray(line.get_xdata()))]


def heights(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def test_evaluated_scores_are_drawn_as_measured_and_those_in_training_smoothed(
    tmp_path: Path, compared: Compared
):
    scores = [20.3, 395.0, 259.9]
    run = evaluated_run(tmp_path / "run", dict(zip((100, 200, 300), scores, strict=True)))
    over_steps, over_time, training, _ = compared(run)
    assert [heights(line) for line in lines_in(over_steps)] == [scores]
    assert [heights(line) for line in lines_in(over_time)] == [scores]
    (line,) = lines_in(training)
    assert heights(line) == pytest.approx([207.65, 225.0666667, 327.45])


def test_runs_are_compared_from_their_first_steps_on(tmp_path: Path, compared: Compared):
    run = evaluated_run(tmp_path / "run", {1000: 1.0, 2000: 2.0, 3000: 3.0})
    directory = RunDirectory(run, resumed_at=0.0)
    directory.event("started")
    directory.event("first_step", text="learner_steps", seconds=9.0)
    directory.event("first_step", text="environment_steps", seconds=4.0)
    directory.close()
    over_time = compared(run)[1]
    (line,) = lines_in(over_time)
    assert np.asarray(line.get_xdata()).tolist() == [6.0, 16.0, 26.0]
    assert over_time.get_xlabel() == "seconds since the first environment step"


def test_a_band_of_evaluated_scores_is_between_the_measured_ones(
    tmp_path: Path, compared: Compared
):
    first = evaluated_run(tmp_path / "1", {0: 0.0, 100: 8.0, 199: 0.0}, seed=1)
    second = evaluated_run(tmp_path / "2", {0: 2.0, 100: 10.0, 199: 2.0}, seed=2)
    axes = compared(first, second)[0]
    (mean,) = lines_in(axes)
    assert (min(heights(mean)), max(heights(mean))) == (1.0, pytest.approx(9.0))
    assert len(axes.collections) == 1


def test_a_run_with_one_evaluation_shows_it(tmp_path: Path, compared: Compared):
    many = evaluated_run(tmp_path / "many", {100: 1.0, 200: 2.0, 300: 3.0}, env="Acrobot-v1")
    axes = compared(evaluated_run(tmp_path / "one", {100: 7.0}), many)[0]
    shown = [(heights(line), line.get_marker()) for line in lines_in(axes)]
    assert shown == [([7.0], "o"), ([1.0, 2.0, 3.0], "")]


@pytest.mark.parametrize("later", [(500, 900), (300, 900)], ids=["apart", "one common point"])
def test_runs_that_share_no_stretch_have_no_mean_but_their_own_curves(
    tmp_path: Path, compared: Compared, later: tuple[int, int]
):
    first = evaluated_run(tmp_path / "first", {0: 0.0, 300: 3.0}, seed=1)
    second = evaluated_run(tmp_path / "second", dict(zip(later, (4.0, 8.0), strict=True)), seed=2)
    axes = compared(first, second)[0]
    assert [heights(line) for line in lines_in(axes)] == [[0.0, 3.0], [4.0, 8.0]]
    assert len({line.get_color() for line in lines_in(axes)}) == 1
    assert len(axes.collections) == 0
    assert axes.get_legend_handles_labels()[1] == ["first (2 seeds)"]


def test_runs_of_one_seed_are_not_called_seeds(tmp_path: Path):
    run, again, other = (
        run_of(tmp_path / name, run={"seed": seed}) for name, seed in (("r", 1), ("s", 1), ("t", 2))
    )
    assert [group.label for group in grouped([run, run])] == ["r (2 runs)"]
    assert [group.label for group in grouped([run, again, other])] == ["r (3 runs)"]
    assert [group.label for group in grouped([run, other])] == ["r (2 seeds)"]
    assert [group.label for group in grouped([run])] == ["r (one seed)"]


def test_runs_are_drawn_beside_each_other(tmp_path: Path):
    runs = [run_of(tmp_path / "a", 1.0), run_of(tmp_path / "b", 2.0, actor={"n_step": 5})]
    draw_comparison(runs, tmp_path / "comparison.png")
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.size == (1540, 990)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.pdf", "a.svg", "a.jpg", "a.jpeg", "a.webp"])
def test_a_picture_is_written_as_its_name_ends(tmp_path: Path, name: str):
    runs = [run_of(tmp_path / "a"), run_of(tmp_path / "b", actor={"n_step": 5})]
    contents = []
    for draw in (lambda path: draw_comparison(runs, path), lambda p: plot_training(runs[0], p)):
        draw(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] != contents[1]
    assert all(SIGNATURES[name[2:].lower()] in content[:100] for content in contents)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", name}


@pytest.mark.parametrize(("name", "words"), [
    ("a.foo", r"--out .*a\.foo: expected a name that ends in \.png, \.pdf"),
    ("a", r"--out .*a: expected a name that ends in"),
    ("nowhere/a.png", r"--out .*a\.png: there is no folder .*nowhere"),
    ("folder.png", r"--out .*folder\.png cannot be written"),
])  # fmt: skip
def test_a_picture_that_could_not_be_written_is_refused_first(
    tmp_path: Path, name: str, words: str
):
    runs = [run_of(tmp_path / "run"), tmp_path / "no run at all"]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=words):
        draw_comparison(runs, tmp_path / name)
    with pytest.raises(UsageError, match=words):
        plot_training(runs[0], tmp_path / name)


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a run directory"):
        grouped([run_of(tmp_path / "a"), tmp_path])


# ---- films ----


@pytest.mark.parametrize("name", ["policy.gif", "policy.webp", "policy.png"])
def test_a_film_has_a_frame_for_every_step_and_one_before(tmp_path: Path, name: str):
    model = model_of(tmp_path / "m.pth", PLACEMENT, map_size=16, radii=[3, 2, 1])
    assert record_film(model, tmp_path / name, episodes=2) == (2 * 4, True)
    # The format merges equal frames.
    with Image.open(tmp_path / name) as film:
        assert 2 <= getattr(film, "n_frames", 1) <= 8


def test_a_film_as_mp4_is_as_large_as_its_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    model = model_of(tmp_path / "m.pth", PLACEMENT, map_size=16, radii=[3, 2, 1])
    path = tmp_path / "policy.mp4"
    assert record_film(model, path, episodes=1) == (4, True)
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 4
    with contextlib.closing(imageio_ffmpeg.read_frames(path)) as film:
        assert next(film)["size"] == (512, 548)
    assert caplog.messages == []  # the codec would warn of these sizes


def test_what_cannot_be_filmed_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"expected a name that ends in \.gif"):
        check_film(tmp_path / "policy.avi")
    with pytest.raises(UsageError, match="there is no folder"):
        check_film(tmp_path / "nowhere" / "policy.gif")
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UsageError, match=r"folder\.gif cannot be written"):
        check_film(tmp_path / "folder.gif")
    model = model_of(tmp_path / "m.pth", "CliffWalking-v1")
    model = Model(model.network, model.spec, {"bad_argument": 1}, 7)
    with pytest.raises(UsageError, match="does not render rgb_array"):
        check_camera(model)


BYTES = 548 * 512 * 3  # a picture of circle placement on 16 x 16 cells


@pytest.mark.parametrize(("bound", "most"), [("_MOST_FRAMES", 3), ("_MOST_BYTES", 3 * BYTES)])
def test_a_film_is_cut_where_it_would_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
):
    model = model_of(tmp_path / "m.pth", PLACEMENT, map_size=16, radii=[3, 2, 1])
    monkeypatch.setattr(films, bound, most)
    assert record_film(model, tmp_path / "policy.gif", episodes=2) == (3, False)


class Screens(gymnasium.Env[Any, Any]):
    """An environment that does not render; screen n of an episode has n bright rows."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, dtype: Any = np.uint8, channels: tuple[int, ...] = ()) -> None:
        self._step = 0
        self.observation_space = gymnasium.spaces.Box(0, 255, (9, 8, *channels), dtype)

    def _screen(self) -> Any:
        screen = np.zeros_like(self.observation_space.sample())
        screen[: self._step] = 200
        return screen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._step = 0
        return self._screen(), {}

    def step(self, action: Any) -> Any:
        self._step += 1
        return self._screen(), 1.0, self._step == 5, False, {}


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_an_environment_that_does_not_render_is_filmed_as_the_policy_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: tuple[int, ...]
):
    monkeypatch.setitem(sys.modules, "my_screens", sys.modules[__name__])
    model = model_of(tmp_path / "m.pth", "my_screens:Screens", channels=channels)
    assert record_film(model, tmp_path / "policy.png", episodes=1) == (5, True)
    with Image.open(tmp_path / "policy.png") as film:
        assert film.size == (8 * 35, 9 * 35)
        film.seek(3)
        rows = np.asarray(film.convert("L"))[:, 0]
    assert (rows > 0).sum() == 3 * 35


def test_what_neither_renders_nor_shows_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "my_screens", sys.modules[__name__])
    model = model_of(tmp_path / "m.pth", "my_screens:Screens", dtype="float32")
    with pytest.raises(
        UsageError, match=r"does not render rgb_array \(.*\), and no observation is an image"
    ):
        check_camera(model)


class Canvas(Screens):
    """An environment whose picture n has brightness n; all are drawn on one canvas."""

    def __init__(self, canvas: Any, brightness: float, render_mode: str | None = None) -> None:
        super().__init__(np.float32)
        self.render_mode, self._canvas, self._brightness = render_mode, canvas, brightness

    def render(self) -> Any:
        self._canvas[:] = self._step * self._brightness
        return self._canvas


class Refuses(Screens):
    """An environment that refuses to render only when asked for a picture."""

    closed = 0

    def __init__(self, error: Any, render_mode: str | None = None, dtype: Any = np.uint8) -> None:
        super().__init__(dtype)
        self.render_mode, self._error = render_mode, error

    def render(self) -> Any:
        raise self._error

    def close(self) -> None:
        Refuses.closed += self.render_mode is not None


def model_with(env: type[Screens], **env_args: Any) -> Model:
    """Build the model of an environment here, with arguments that no file could hold."""
    spec = describe_environment(f"my_screens:{env.__name__}", env_args)
    return Model(build_network(spec, NetworkConfig()), spec, env_args, 7)


@pytest.fixture
def my_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_screens", sys.modules[__name__])


def brightness(path: Path) -> list[list[int]]:
    """Return a pixel's colours in each frame of a film."""
    with Image.open(path) as film:
        frames = [film.convert("RGB") for _ in ImageSequence.Iterator(film)]
    return [list(frame.getpixel((4, 4))) for frame in frames]  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("my_screens")
@pytest.mark.parametrize(("canvas", "step"), [
    (np.zeros((9, 8, 3), np.uint8), 40),
    (np.zeros((9, 8, 3)), 40 / 255),
    (np.zeros((9, 8, 3), np.float32), 40 / 255),
    (np.zeros((9, 8), np.uint8), 40),
    (np.zeros((9, 8, 1)), 40 / 255),
    (np.zeros((9, 8, 4), np.uint8), 40),
])  # fmt: skip
def test_pictures_of_any_kind_that_are_drawn_on_one_canvas_are_filmed_as_they_were(
    tmp_path: Path, canvas: Any, step: float
):
    model = model_with(Canvas, canvas=canvas, brightness=step)
    check_camera(model)
    assert record_film(model, tmp_path / "policy.png", episodes=1) == (6, True)
    assert brightness(tmp_path / "policy.png") == [[40 * n] * 3 for n in range(6)]


@pytest.mark.usefixtures("my_screens")
@pytest.mark.parametrize(("canvas", "told"), [
    (np.zeros((9, 8, 2), np.uint8), r"uint8 \[9, 8, 2\]"),
    (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
    (np.zeros(9, np.uint8), r"uint8 \[9\]"),
    (np.zeros((9, 8, 3), np.int64), r"int64 \[9, 8, 3\]"),
])  # fmt: skip
def test_what_renders_no_picture_is_refused_by_its_shape_and_type(canvas: Any, told: str):
    model = model_with(Canvas, canvas=canvas, brightness=1)
    with pytest.raises(UsageError, match=f"--video: my_screens:Canvas does not .*gave {told};.*"):
        check_camera(model)


@pytest.mark.usefixtures("my_screens")
@pytest.mark.parametrize("brightness", [2, -1, np.nan])
def test_floats_that_turn_out_to_be_no_brightness_end_a_film_with_one_line(
    tmp_path: Path, brightness: float
):
    model = model_with(Canvas, canvas=np.zeros((9, 8, 3)), brightness=brightness)
    with pytest.raises(UsageError, match=r"my_screens:Canvas .*float64 \[9, 8, 3\]"):
        record_film(model, tmp_path / "policy.png", episodes=1)


REFUSALS = {
    "pygame is not installed": gymnasium.error.DependencyNotInstalled("pygame is not installed"),
    "NotImplementedError": NotImplementedError(),
    "no mode": AssertionError("no mode\nof this name"),
}


@pytest.mark.usefixtures("my_screens")
@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_what_says_only_when_asked_that_it_cannot_render_is_filmed_as_the_policy_sees_it(
    tmp_path: Path, error: Exception
):
    Refuses.closed = 0
    model = model_with(Refuses, error=error)
    check_camera(model)
    assert record_film(model, tmp_path / "policy.png", episodes=1) == (5, True)
    assert Refuses.closed == 2


@pytest.mark.usefixtures("my_screens")
@pytest.mark.parametrize("told", REFUSALS)
def test_its_own_words_say_why_there_is_no_film(told: str):
    model = model_with(Refuses, error=REFUSALS[told], dtype=np.float32)
    with pytest.raises(UsageError) as refusal:
        check_camera(model)
    assert str(refusal.value) == (
        f"--video: my_screens:Refuses does not render rgb_array ({told}), and no observation is an "
        "image"
    )

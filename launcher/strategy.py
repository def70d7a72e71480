"""Pictures of what a policy does: how it places circles, and films of environments that render."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image

from actors.environments.circle_placement import CirclePlacementEnv
from actors.environments.making import makers
from launcher.output_files import check_output
from launcher.plots import save_picture
from pdqn import seeds
from pdqn.errors import UsageError
from pdqn.model import Model
from pdqn.policy import Policy
from pdqn.specs import ACTION_MASK

STRATEGY_PICTURE = "strategy.png"
FILM_FORMATS = (".gif", ".webp", ".png", ".mp4")
_MAPS = 3
_MOST_FRAMES = 10_000
_DEFAULT_FPS = 30

Picture = NDArray[np.uint8]


def draw_strategy(model: Model, path: Path) -> Path:
    """Draw how the policy places circles on held-out maps, beside exact greedy.

    A row for each map: the policy's circles in their order, exact greedy's, and Q of every centre
    of the first circle. White is no valid centre.

    Args:
        model: of circle placement.
        path: of the picture; whoever looks meanwhile sees the old one or the new one.
    """
    figure = Figure(figsize=(13, 4.6 * _MAPS), layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    figure.suptitle(f"{model.spec.id}: the policy of learner step {model.parameter_version}")
    grid: NDArray[Any] = figure.subplots(_MAPS, 3)
    arguments = {k: v for k, v in model.env_args.items() if k not in ("render_mode", "suggest")}
    env = CirclePlacementEnv(**arguments, render_mode="rgb_array", suggest=True)
    for row, seed in zip(grid, seeds.held_out_seeds(_MAPS), strict=True):
        policy = Policy(model)
        _show(row[0], f"policy, map {seed}", _placed(env, seed, lambda o, _, p=policy: p.act(o)))
        _show(row[1], "exact greedy", _placed(env, seed, lambda _, info: info["suggested_action"]))
        _draw_values(figure, row[2], policy.values(env.reset(seed=seed)[0]))
    return save_picture(figure, path, dpi=80)


def record_film(model: Model, path: Path, episodes: int) -> int:
    """Film greedy episodes on held-out seeds; the number of frames.

    Args:
        model: of an environment that renders ``rgb_array``.
        path: of the film; its ending says the format.
        episodes: one after the other.

    Raises:
        UsageError: the environment does not render, or the format is not known.
    """
    check_film(path)
    env = _rendering(model)
    policy, frames = Policy(model), []
    try:
        for seed in seeds.held_out_seeds(episodes):
            frames += _filmed(env, policy, seed, _MOST_FRAMES - len(frames))
        fps = float(env.metadata.get("render_fps") or _DEFAULT_FPS)
    finally:
        env.close()
    _write_film(path, frames, fps)
    return len(frames)


def check_film(path: Path) -> None:
    """Refuse a film that could not be written.

    Raises:
        UsageError: its format is not known or needs a package that is missing, or the file cannot
            be written.
    """
    check_output("--video", path, FILM_FORMATS)
    if path.suffix.lower() == ".mp4":
        _ffmpeg(path)


def _placed(
    env: CirclePlacementEnv, seed: int, choose: Callable[[Any, Mapping[str, Any]], int]
) -> Picture:
    """The picture of an episode at its end."""
    observation, info = env.reset(seed=seed)
    ended = False
    while not ended:
        observation, _, ended, _, info = env.step(choose(observation, info))
    picture = env.render()
    assert picture is not None
    return picture


def _show(axes: Axes, title: str, picture: Picture) -> None:
    axes.imshow(picture)
    axes.set_title(title)
    axes.set_axis_off()


def _draw_values(figure: Figure, axes: Axes, values: NDArray[np.float32]) -> None:
    size = round(len(values) ** 0.5)
    shown = np.where(np.isfinite(values), values, np.nan).reshape(size, size)
    image = axes.imshow(shown, cmap="viridis")
    down, right = divmod(int(values.argmax()), size)
    axes.plot(right, down, marker="+", color="red", markersize=14, markeredgewidth=2)
    axes.set_title("Q of the first circle's centre")
    axes.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, shrink=0.8)


def _rendering(model: Model) -> Any:
    """One environment that gives pictures."""
    made = makers(model.spec.id, {**model.env_args, "render_mode": "rgb_array"})
    why = f"--video: {model.spec.id} does not render rgb_array"
    if made.single is None:
        raise UsageError(f"{why}: its batches have no pictures")
    try:
        return made.single()
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{why} ({error})") from error


def _filmed(env: Any, policy: Policy, seed: int, most: int) -> list[Picture]:
    """The frames of an episode, its first and its last one included."""
    policy.reset()
    observation, info = env.reset(seed=seed)
    frames, ended = [env.render()], False
    while not ended and len(frames) < most:
        action = policy.act(observation, info.get(ACTION_MASK))
        observation, _, terminated, truncated, info = env.step(action)
        frames.append(env.render())
        ended = terminated or truncated
    if not all(isinstance(frame, np.ndarray) for frame in frames):
        raise UsageError(f"--video: {policy.model.spec.id} does not render rgb_array")
    return frames


def _write_film(path: Path, frames: list[Picture], fps: float) -> None:
    if path.suffix.lower() == ".mp4":
        height, width = (side // 2 * 2 for side in frames[0].shape[:2])  # as its codec wants it
        writer = _ffmpeg(path).write_frames(str(path), (width, height), fps=fps)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame[:height, :width]))
        writer.close()
        return
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=max(20, 1000 / fps), loop=0)


def _ffmpeg(path: Path) -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UsageError(
            f"--video {path}: mp4 needs imageio-ffmpeg: python -m pip install 'pdqn[video]'; gif, "
            "webp and png need nothing"
        ) from error
    return imageio_ffmpeg

"""The picture of how a policy places circles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from actors.circle_placement.environment import CirclePlacementEnv
from actors.environments.making import makers
from launcher.results.training import save_picture
from pdqn import seeds
from pdqn.errors import UsageError
from pdqn.model import Model
from pdqn.policy import Policy
from pdqn.specs import ACTION_MASK

STRATEGY_PICTURE = "strategy.png"
_MAPS = 3

Picture = NDArray[np.uint8]


def draw_strategy(model: Model, path: Path) -> Path:
    """Draw how the policy places circles on held-out maps, next to exact greedy.

    A row for each map has the policy's circles in their order, exact greedy's circles, and the Q
    of every centre for the first circle. White is not a valid centre.

    Args:
        model: of circle placement, or of a variant that wraps it.
        path: the picture; a reader sees the old one or the new one, never a part.

    Raises:
        UsageError: the variant only comes in batches, or hides the environment that it wraps.
    """
    figure = Figure(figsize=(13, 4.6 * _MAPS), layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    figure.suptitle(f"{model.spec.id}: the policy of learner step {model.parameter_version}")
    grid: NDArray[Any] = figure.subplots(_MAPS, 3)
    with closing(_made(model)) as env:
        inner = env.unwrapped
        for row, seed in zip(grid, seeds.held_out_seeds(_MAPS), strict=True):
            policy = Policy(model)
            _show(row[0], f"policy, map {seed}", _placed(env, seed, policy.act))
            _show(row[1], "exact greedy", _placed(env, seed, lambda *_: inner.exact_greedy()))
            observation, info = env.reset(seed=seed)
            policy.reset()
            values = policy.values(observation, info.get(ACTION_MASK))
            _draw_values(figure, row[2], values, inner.map_shape)
    return save_picture(figure, path, dpi=80)


def _made(model: Model) -> Any:
    """Make the environment as the policy knows it, around one that draws itself."""
    single = makers(model.spec.id, model.env_args).single
    env = None if single is None else single()
    if env is None or not isinstance(env.unwrapped, CirclePlacementEnv):
        raise UsageError(f"{model.spec.id}: there is no single CirclePlacementEnv to draw")
    env.unwrapped.render_mode = "rgb_array"
    return env


def _placed(env: Any, seed: int, choose: Callable[[Any, Any], int]) -> Picture:
    """Play an episode; return the picture of its end."""
    observation, info = env.reset(seed=seed)
    ended = False
    while not ended:
        action = choose(observation, info.get(ACTION_MASK))
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    return env.unwrapped.render()


def _show(axes: Axes, title: str, picture: Picture) -> None:
    axes.imshow(picture)
    axes.set_title(title)
    axes.set_axis_off()


def _draw_values(
    figure: Figure, axes: Axes, values: NDArray[np.float32], shape: tuple[int, int]
) -> None:
    size, (height, width) = round(len(values) ** 0.5), shape
    shown = np.where(np.isfinite(values), values, np.nan).reshape(size, size)
    image = axes.imshow(shown[:height, :width], cmap="viridis")
    down, right = divmod(int(values.argmax()), size)
    axes.plot(right, down, marker="+", color="red", markersize=14, markeredgewidth=2)
    axes.set_title("Q of the first circle's centre")
    axes.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, shrink=0.8)

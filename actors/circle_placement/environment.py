"""The built-in environment: place circles on a weighted map to cover as much as possible.

A map of N x N cells holds a weight in every cell. Given circles are placed one at a time, and each
collects the weight under it. The rewards of an episode add up to its **coverage**, the share of the
map's weight that it collected.

gymnasium knows it as ``pdqn/CirclePlacement-v0`` once ``actors.environments.registration`` is
imported. Both forms below wrap the same batch of episodes, and play the same episode for the same
seed and actions.

Seeds: ``reset(seed=s)`` starts map number s, and ``reset()`` a random map below 1,000,000. Training
therefore never uses maps from 1,000,000 on unless a caller asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actors.circle_placement import kernels, yardsticks
from actors.circle_placement.baselines import baselines, heaviest
from actors.circle_placement.drawing import draw_episode
from actors.circle_placement.kernels import ALL_PLACED, GOING_ON, MAX_CIRCLES, NO_VALID_CENTRE
from actors.circle_placement.problem import (
    Instance,
    OwnMaps,
    Problem,
    parse_switch,
    parse_whole,
)
from actors.circle_placement.tables import Tables, tables_of
from actors.circle_placement.trials import Trials, parse_rollouts
from pdqn import plain
from pdqn.errors import UsageError
from pdqn.seeds import HELD_OUT_SEED
from pdqn.specs import ROLLOUT_ACTIONS, ROLLOUT_RETURNS

Observation = dict[str, NDArray[Any]]
Infos = dict[str, Any]

END_NAMES = {ALL_PLACED: "all_placed", NO_VALID_CENTRE: "no_valid_centre"}
_NOT_STARTED = -1  # next to the ends that the kernels know


class EpisodeBatch:
    """B episodes of one problem, advanced together.

    Attributes:
        problem: the settings.
        map_seeds: int64[B], seeds of the maps being played.
        ends: int8[B], GOING_ON or the way in which the episode has ended.
        episodes: the arrays that the kernels work on.
    """

    def __init__(self, problem: Problem, num_envs: int, rollouts: int | str = 0) -> None:
        """Allocate the episodes; each must be started before it can be advanced.

        Args:
            problem: the settings.
            num_envs: number of episodes.
            rollouts: the setting of that name.
        """
        trials = parse_rollouts(rollouts, overlap=problem.overlap)
        self._trials = Trials(problem, num_envs, trials) if trials else None
        maps_shape = (num_envs, problem.map_size, problem.map_size)
        self.problem, self._gap = problem, problem.gap
        self.map_seeds = np.zeros(num_envs, np.int64)
        self.ends = np.full(num_envs, _NOT_STARTED, np.int8)
        self._maps = np.zeros(maps_shape, np.float16)
        self.episodes = kernels.Episodes(
            weights=np.zeros(maps_shape, np.float32),
            maps=self._maps.view(np.uint16),
            totals=np.ones(num_envs),
            coverages=np.zeros(num_envs),
            radii=np.zeros((num_envs, MAX_CIRCLES), np.int64),
            counts=np.ones(num_envs, np.int64),
            placed=np.zeros(num_envs, np.int64),
            centres=np.zeros((num_envs, MAX_CIRCLES, 2), np.int64),
        )
        # int16[B, N, N], see ``MapSet``; the edges alone bound circles on generated maps.
        self._fits = None if problem.maps is None else np.zeros(maps_shape, np.int16)

    def start(self, b: int, map_seed: int) -> None:
        """Start episode b on map number ``map_seed``."""
        weights = self.episodes.weights[b]
        self.episodes.counts[b] = self.problem.generate(map_seed, weights, self.episodes.radii[b])
        if self._fits is not None:
            self._fits[b] = self.problem.fits_of(map_seed)
        self.episodes.totals[b] = weights.sum(dtype=np.float64)
        self.episodes.coverages[b] = 0.0
        self.episodes.placed[b] = 0
        self._maps[b] = weights / weights.max()
        self.map_seeds[b] = map_seed
        self.ends[b] = GOING_ON
        if self._trials is not None:
            self._trials.start(b, map_seed, self._instance(b))

    def place(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """Place the next circle of every episode.

        Args:
            actions: int64[B], the centres.

        Returns:
            float64[B], the rewards, and int8[B, N * N], the valid centres of the next circles.

        Raises:
            ValueError: an action is invalid; then no episode has changed.
            ResetNeeded: an episode is over or was never started.
        """
        if self.ends.any():
            raise ResetNeeded("reset() must be called before step(), and after an episode's end")
        if self._fits is not None:
            b = int(kernels.first_blocked(self.episodes, self._fits, actions))
            if b >= 0:
                raise ValueError(self._explain(b, int(actions[b]), kernels.BLOCKED, -1))
        rewards = np.empty(len(actions))
        masks = np.empty((len(actions), self.problem.map_size**2), np.int8)
        b, rule, circle = kernels.place_circles(
            self.episodes, self._gap, actions, rewards, masks, self.ends
        )
        if rule != kernels.VALID:
            raise ValueError(self._explain(b, int(actions[b]), rule, circle))
        if self._fits is not None:
            kernels.keep_fitting_of_all(self.episodes, self._fits, masks, self.ends)
        return rewards, masks

    def fill_mask(self, b: int, mask: NDArray[np.int8]) -> None:
        """Fill mask, int8[N * N], with the valid centres of episode b's next circle."""
        kernels.find_next_centres(self.episodes, self._gap, b, mask)
        if self._fits is not None and self.ends[b] == GOING_ON:
            radius = self.episodes.radii[b, self.episodes.placed[b]]
            kernels.keep_fitting(self._fits[b], radius, mask)

    def observe(self, rows: NDArray[np.int64], masks: NDArray[np.int8]) -> Observation:
        """Return the observations of the episodes in rows, in arrays that stay unchanged.

        Args:
            rows: int64[R], indices of the episodes.
            masks: int8[R, N * N], their valid centres; becomes part of the result.
        """
        placed = self.episodes.placed[rows]
        radii = self.episodes.radii[rows]
        next_radii = radii[np.arange(len(rows)), np.minimum(placed, MAX_CIRCLES - 1)]
        next_radii[self.ends[rows] != GOING_ON] = 0
        progress = np.stack([placed / self.episodes.counts[rows], self.episodes.coverages[rows]], 1)
        return {
            "action_mask": masks,
            "map": self._maps[rows],
            "placed": (np.arange(MAX_CIRCLES) < placed[:, None]).astype(np.int8),
            # In float64, rounding may bring the coverage of a whole map slightly above 1.
            "progress": np.minimum(progress, 1.0).astype(np.float32),
            "radii": radii.astype(np.float32),
            "radius": next_radii[:, None].astype(np.float32),
        }

    def suggest(self, masks: NDArray[np.int8]) -> NDArray[np.int64]:
        """Return exact greedy's next actions, int64[B]; -1 where no centre is valid.

        Args:
            masks: int8[B, N * N], the valid centres.
        """
        actions = np.full(len(masks), -1, np.int64)
        for b in np.flatnonzero(masks.any(axis=1)).tolist():
            radius = self.episodes.radii[b, self.episodes.placed[b]]
            actions[b] = heaviest(self.episodes.weights[b], masks[b], radius)
        return actions

    def tables(self, b: int) -> Tables:
        """Make the tables of episode b's map, on which nothing is placed yet."""
        return tables_of(self.problem, int(self.map_seeds[b]), self._instance(b))

    def _instance(self, b: int) -> Instance:
        """Return episode b's map, on which nothing is placed yet, and its circles."""
        part = self.episodes
        return Instance(part.weights[b], part.radii[b], int(part.counts[b]))

    def roll_out(self, chosen: NDArray[np.bool_]) -> Infos:
        """Try other centres in some episodes; return the infos of all, without their marks.

        Args:
            chosen: bool[B]; episodes that are over are left out.
        """
        if self._trials is None:
            return {}
        shape = (len(chosen), self._trials.count)
        actions, returns = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
        for b in np.flatnonzero(chosen & (self.ends == GOING_ON)).tolist():
            centres = self.episodes.centres[b, : self.episodes.placed[b]]
            actions[b], returns[b] = self._trials.of(b, int(self.map_seeds[b]), centres)
        return {ROLLOUT_ACTIONS: actions, ROLLOUT_RETURNS: returns}

    def get_state(self, b: int) -> dict[str, Any]:
        """Return episode b as plain data: its map, and the circles placed so far."""
        if self.ends[b] == _NOT_STARTED:
            return {"map_seed": None, "actions": []}
        centres = self.episodes.centres[b, : self.episodes.placed[b]]
        actions = centres[:, 0] * self.problem.map_size + centres[:, 1]
        state = {"map_seed": int(self.map_seeds[b]), "actions": actions.tolist()}
        maps = self.problem.maps
        return state if maps is None else state | {"maps": maps.digest}

    def set_state(self, b: int, state: Mapping[str, Any]) -> None:
        """Play episode b as far as another one was.

        Raises:
            ValueError: no episode of this problem was there.
        """
        self.ends[b] = _NOT_STARTED
        if state["map_seed"] is None:
            return
        if (maps := self.problem.maps) is not None and state.get("maps") != maps.digest:
            raise ValueError(f"the maps in {maps.source} have changed")
        self.start(b, _parse_whole(state["map_seed"]))
        alone = EpisodeBatch(self.problem, 1)
        parts: dict[str, Any] = {n: a[b : b + 1] for n, a in self.episodes._asdict().items()}
        alone.episodes = kernels.Episodes(**parts)
        alone.ends = self.ends[b : b + 1]
        alone._fits = None if self._fits is None else self._fits[b : b + 1]
        for action in state["actions"]:
            alone.place(np.array([_parse_whole(action)]))

    def draw(self, b: int) -> NDArray[np.uint8]:
        """Draw a picture of episode b, uint8[height, width, 3]."""
        placed, map_seed = int(self.episodes.placed[b]), int(self.map_seeds[b])
        # Films need pictures of one size.
        height, width = self.problem.extent
        return draw_episode(
            self.problem.instance(map_seed).weights[:height, :width],
            self.episodes.centres[b, :placed],
            self.episodes.radii[b, : self.episodes.counts[b]],
            float(self.episodes.coverages[b]),
            self.problem.fits_of(map_seed)[:height, :width] < 0,
            () if self.problem.maps is None else self.problem.maps.placed,
        )

    def _explain(self, b: int, action: int, rule: int, circle: int) -> str:
        """Explain why an action is invalid."""
        size = self.problem.map_size
        centre = x, y = divmod(action, size)
        placed = int(self.episodes.placed[b])
        radius = int(self.episodes.radii[b, placed])
        start = f"action {action} is invalid for circle {placed + 1} of radius {radius}"
        if len(self.ends) > 1:
            start = f"environment {b}: {start}"
        if rule == kernels.OFF_MAP:
            return f"{start}: expected 0 to {size**2 - 1}, a cell of the map"
        sides = self.problem.shape_of(int(self.map_seeds[b]))
        bad = [f"{name} = {at}" for name, at, side in zip("xy", centre, sides, strict=True)
               if not radius <= at < side - radius]  # fmt: skip
        if bad:
            within = " and ".join(dict.fromkeys(f"{radius} to {n - radius - 1}" for n in sides))
            return (
                f"{start}: centred at {centre} it is out of bounds, as {' and '.join(bad)} must be "
                f"within {within}"
            )
        if rule == kernels.BLOCKED and self._fits is not None:
            return (
                f"{start}: centred at {centre} it meets a forbidden zone or a circle that was "
                f"placed before; at most radius {self._fits[b, x, y]} fits there"
            )
        other = tuple(map(int, self.episodes.centres[b, circle]))
        other_radius = int(self.episodes.radii[b, circle])
        distance = np.hypot(x - other[0], y - other[1])
        return (
            f"{start}: centred at {centre} it overlaps circle {circle + 1} of radius "
            f"{other_radius} at {other}; the distance is {distance:.2f}, "
            f"at least {radius + other_radius + self.problem.spacing} is needed"
        )


class _CirclePlacement:
    """Common parts of both forms of the environment."""

    headline_metric = "coverage"
    # The mark by which other code recognises it. An id or fields would miss variants and admit
    # look-alikes.
    circle_placement = True

    _batch: EpisodeBatch

    def baselines(self, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Compute the coverage of ``random``, ``exact_greedy`` and ``upper_bound`` on these maps.

        See ``actors.circle_placement.baselines``. The settings are those of this environment.
        """
        return baselines(self._batch.problem, seeds)

    def bounds(self, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Compute the coverage that no placement on these maps exceeds, ``dual_bound``."""
        return yardsticks.bounds(self._batch.problem, seeds)

    def searches(self, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Compute the coverage of a search of a second a map, ``annealing_1s``."""
        return yardsticks.searches(self._batch.problem, seeds)

    @property
    def problem(self) -> Problem:
        """The settings."""
        return self._batch.problem

    @property
    def map_shape(self) -> tuple[int, int]:
        """Height and width of the largest map, without padding."""
        return self._batch.problem.extent

    @property
    def held_out_episodes(self) -> int:
        """Number of held-out seeds whose episodes differ; 0 for any number."""
        problem = self._batch.problem
        if problem.maps is None or not isinstance(problem.radii, tuple):
            return 0
        return len(problem.maps.held_out)

    @property
    def about(self) -> str:
        """Sentence about a person's own maps, for the first lines of a run; empty without any."""
        maps = self._batch.problem.maps
        return "" if maps is None else maps.describe()


class CirclePlacementEnv(_CirclePlacement, gymnasium.Env[Observation, np.int64]):
    """Placement of one circle after the other on one map.

    Action: ``Discrete(N * N)``; (x, y) = divmod(action, N) is the centre of the next circle.

    Observation, a ``Dict`` of

        ``map``: float16[N, N], weights / the largest original weight, 0 where covered;
        ``radius``: float32[1], of the circle to place, in cells; 0 when the episode is over;
        ``radii``: float32[20], of all circles, in cells, zero-padded;
        ``placed``: int8[20], 1 for each circle that is placed;
        ``progress``: float32[2], the share of circles placed, and the coverage so far;
        ``action_mask``: int8[N * N], 1 for each valid centre; all 0 when the episode is over.

    A centre is valid if the disc lies within the map. Unless ``overlap``, it must also be at least
    the sum of both radii away from every earlier centre. Any other action is a ``ValueError``.

    Reward: the share of the map's original weight that this circle collected.

    Info: ``map_seed``; ``action_mask``, the array in the observation; ``coverage`` so far. The last
    step adds ``end``, either ``all_placed`` or ``no_valid_centre``. ``suggest`` adds
    ``suggested_action``, exact greedy's choice, -1 when the episode is over. ``rollouts`` adds
    ``rollout_actions`` and ``rollout_returns``, see ``Trials``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 - gymnasium's

    def __init__(
        self,
        map_size: int | str = "auto",
        radii: Sequence[int] | str = "fixed",
        overlap: bool | str = False,
        render_mode: str | None = None,
        suggest: bool | str = False,
        circles: int | str = "",
        spacing: int | str = 0,
        maps: str = "",
        forbidden: str = "",
        keep_out: str = "centre",
        placed: Sequence[Sequence[int]] | str = "",
        split_seed: int | str = 0,
        rollouts: int | str = 0,
    ) -> None:
        """Create the environment.

        Args:
            map_size: N, at least 16. Generated maps look similar at every size. ``auto`` is 128, or
                the least multiple of 8 that holds every one of your own maps.
            radii: ``fixed``, always the same 13 circles; ``random``, 3 to 15 circles that differ
                between maps; or up to 20 radii in cells, in the order of placement. The radii of
                ``fixed`` and ``random`` are in proportion to the map, or to the shortest side of
                your own ones. A range such as ``10..20`` is drawn from for every episode.
            overlap: whether circles may overlap. A cell under several of them counts once.
            render_mode: ``rgb_array`` for pictures, or none.
            suggest: whether infos hold exact greedy's choice.
            circles: number of circles that a range of radii draws, or a range such as ``5..8``.
            spacing: least number of cells between the rims of two circles.
            maps: your own: a ``.npy``, ``.png``, ``.csv`` or ``.tif`` file, or a folder of them.
            forbidden: path of files like the maps; where they are not 0 is forbidden, and so is a
                NaN of the maps.
            keep_out: whether the ``centre`` of a circle or its ``disc`` keeps out of these.
            placed: row, column and radius of circles that are on your own maps already. What they
                cover is gone, and coverage is a share of what they leave.
            split_seed: decides which fifth of your own maps is held out for evaluation.
            rollouts: number of centres, at most 256, for which infos hold what they and greedy
                after them collect; ``auto`` is 24, or 0 if circles may overlap.

        Raises:
            UsageError: a ``ValueError`` that names the setting, its value and what is accepted.
        """
        own = OwnMaps(maps, forbidden, keep_out, placed, split_seed)
        problem = Problem.parse(map_size, radii, overlap, circles=circles, spacing=spacing, own=own)
        self.render_mode = _parse_render_mode(render_mode)
        self.action_space = spaces.Discrete(problem.map_size**2)
        self.observation_space = _observation_space(problem)
        self._suggests = parse_switch("suggest", suggest)
        self._batch = EpisodeBatch(problem, 1, rollouts)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Infos]:
        """Start map number ``seed``, or a random one below 1,000,000; there are no options."""
        super().reset(seed=seed)
        self._batch.start(0, _draw_map_seed(self.np_random) if seed is None else seed)
        masks = np.empty((1, self._batch.problem.map_size**2), np.int8)
        self._batch.fill_mask(0, masks[0])
        return self._observe(masks)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, Infos]:
        """Place the next circle around the cell ``divmod(action, N)``.

        Raises:
            ValueError: the action is invalid; then nothing has changed.
            ResetNeeded: the episode is over or was never started.
        """
        rewards, masks = self._batch.place(_parse_actions(action, ())[None])
        observation, info = self._observe(masks)
        terminated = bool(self._batch.ends[0] != GOING_ON)
        if terminated:
            info["end"] = END_NAMES[int(self._batch.ends[0])]
        return observation, float(rewards[0]), terminated, False, info

    def get_state(self) -> dict[str, Any]:
        """Return the episode and the random generator of the next ones as plain data."""
        random = plain.generator_state(self.np_random)
        return {"episode": self._batch.get_state(0), "random": random}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state`` of an environment with the same arguments.

        Raises:
            ValueError: it had others.
        """
        self._batch.set_state(0, state["episode"])
        plain.set_generator_state(self.np_random, state["random"])

    def exact_greedy(self) -> int:
        """Return exact greedy's choice of the next action, -1 when the episode is over."""
        masks = np.empty((1, self._batch.problem.map_size**2), np.int8)
        self._batch.fill_mask(0, masks[0])
        return int(self._batch.suggest(masks)[0])

    def search(
        self, method: str, values: Callable[[Observation], NDArray[np.float32]]
    ) -> NDArray[np.int64]:
        """Plan the episode, which has just begun, with a policy's Q; see ``search_episode``."""
        from actors.circle_placement.guided import search_episode  # it plays episodes itself

        return search_episode(self._batch, method, values)

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Draw a picture of the episode, uint8[height, width, 3]."""
        return self._batch.draw(0) if self.render_mode else _no_picture()

    def _observe(self, masks: NDArray[np.int8]) -> tuple[Observation, Infos]:
        """Return observation and info of the episode."""
        observations = self._batch.observe(np.zeros(1, np.int64), masks)
        info = {
            "map_seed": int(self._batch.map_seeds[0]),
            "action_mask": masks[0],
            "coverage": float(self._batch.episodes.coverages[0]),
        }
        if self._suggests:
            info["suggested_action"] = int(self._batch.suggest(masks)[0])
        info |= {key: value[0] for key, value in self._batch.roll_out(np.ones(1, bool)).items()}
        return {key: value[0] for key, value in observations.items()}, info


class CirclePlacementVectorEnv(
    _CirclePlacement, VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]
):
    """A batch of ``CirclePlacementEnv`` in lockstep.

    It behaves exactly like gymnasium's ``SyncVectorEnv`` of them with ``AutoresetMode.SAME_STEP``.
    The next episode follows at once, and the step returns its first observation. The last
    observation and info are in ``infos["final_obs"]`` and ``infos["final_info"]``.
    """

    def __init__(
        self,
        num_envs: int | str = 1,
        map_size: int | str = "auto",
        radii: Sequence[int] | str = "fixed",
        overlap: bool | str = False,
        render_mode: str | None = None,
        suggest: bool | str = False,
        circles: int | str = "",
        spacing: int | str = 0,
        maps: str = "",
        forbidden: str = "",
        keep_out: str = "centre",
        placed: Sequence[Sequence[int]] | str = "",
        split_seed: int | str = 0,
        rollouts: int | str = 0,
    ) -> None:
        """Create ``num_envs`` environments with the other arguments of ``CirclePlacementEnv``."""
        own = OwnMaps(maps, forbidden, keep_out, placed, split_seed)
        problem = Problem.parse(map_size, radii, overlap, circles=circles, spacing=spacing, own=own)
        self.num_envs = parse_whole("num_envs", num_envs, 1)
        self.metadata = CirclePlacementEnv.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = _parse_render_mode(render_mode)
        self.single_action_space = spaces.Discrete(problem.map_size**2)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.single_observation_space = _observation_space(problem)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._suggests = parse_switch("suggest", suggest)
        self._batch = EpisodeBatch(problem, self.num_envs, rollouts)
        self._all = np.arange(self.num_envs)
        self._generators = [seeding.np_random()[0] for _ in range(self.num_envs)]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Infos]:
        """Start new episodes.

        Args:
            seed: seeds of the maps, as in ``CirclePlacementEnv``: s for s, s + 1, ..., or one each.
            options: ``{"reset_mask": bool[num_envs]}`` starts only the marked ones, whose infos
                result.
        """
        seeds = self._parse_seeds(seed)
        chosen = self._parse_reset_mask((options or {}).get("reset_mask"))
        for b in np.flatnonzero(chosen).tolist():
            self._start(b, seeds[b])
        masks = np.empty((self.num_envs, self._batch.problem.map_size**2), np.int8)
        for b in range(self.num_envs):
            self._batch.fill_mask(b, masks[b])
        return self._batch.observe(self._all, masks), self._infos(masks, chosen)

    def step(
        self, actions: NDArray[np.int64] | Sequence[int]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], Infos]:
        """Place the next circle of every environment; start the next episode where one ends.

        Raises:
            ValueError: an action is invalid; then nothing has changed in any environment.
            ResetNeeded: ``reset`` was never called.
        """
        rewards, masks = self._batch.place(_parse_actions(actions, (self.num_envs,)))
        terminations = self._batch.ends != GOING_ON
        finals = self._start_next(terminations, masks) if terminations.any() else {}
        infos = finals | self._infos(masks, np.ones(self.num_envs, np.bool_))
        observations = self._batch.observe(self._all, masks)
        return observations, rewards, terminations, np.zeros(self.num_envs, np.bool_), infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Draw each environment's present episode, uint8[height, width, 3]."""
        if not self.render_mode:
            return _no_picture()
        return tuple(self._batch.draw(b) for b in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Return all episodes and the random generators of the next ones as plain data."""
        return {
            "episodes": [self._batch.get_state(b) for b in range(self.num_envs)],
            "random": [plain.generator_state(generator) for generator in self._generators],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state`` of a batch with the same arguments.

        Raises:
            ValueError: it had others.
        """
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(f"{len(state['episodes'])} episodes for {self.num_envs} environments")
        for b, episode in enumerate(state["episodes"]):
            self._batch.set_state(b, episode)
        for generator, random in zip(self._generators, state["random"], strict=True):
            plain.set_generator_state(generator, random)

    def _start(self, b: int, seed: int | None) -> None:
        """Start environment b on map number ``seed``, or on the next one that it draws."""
        if seed is not None:
            self._generators[b] = seeding.np_random(seed)[0]
        self._batch.start(b, _draw_map_seed(self._generators[b]) if seed is None else seed)

    def _start_next(self, ended: NDArray[np.bool_], masks: NDArray[np.int8]) -> Infos:
        """Start the next episodes where ended, bool[B]; return the final infos of those before.

        The rows of masks, int8[B, N * N], of ended episodes are replaced.
        """
        rows = np.flatnonzero(ended)
        last = self._batch.observe(rows, masks[rows])
        final_obs = np.full(self.num_envs, None, dtype=object)
        ends = np.full(self.num_envs, None, dtype=object)
        for row, b in enumerate(rows):
            final_obs[b] = {key: value[row] for key, value in last.items()}
            ends[b] = END_NAMES[int(self._batch.ends[b])]
        no_centres = np.zeros_like(masks)  # in whichever way an episode has ended
        final_info = self._infos(no_centres, ended) | {"end": ends, "_end": ended.copy()}
        for b in rows.tolist():
            self._start(b, None)
            self._batch.fill_mask(b, masks[b])
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
        }

    def _infos(self, masks: NDArray[np.int8], chosen: NDArray[np.bool_]) -> Infos:
        """Return the infos of the environments in chosen, bool[B], in gymnasium's layout."""
        infos = {
            "map_seed": np.where(chosen, self._batch.map_seeds, 0),
            "action_mask": masks if chosen.all() else np.where(chosen[:, None], masks, np.int8(0)),
            "coverage": np.where(chosen, self._batch.episodes.coverages, 0.0),
        }
        if self._suggests:
            infos["suggested_action"] = np.where(chosen, self._batch.suggest(masks), 0)
        infos |= self._batch.roll_out(chosen & masks.any(axis=1))
        return infos | {f"_{key}": chosen.copy() for key in infos}

    def _parse_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        """Return one seed, or none, for each environment."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            return [seed + b for b in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected one seed for each of {self.num_envs}, got {len(seed)}")
        return seed

    def _parse_reset_mask(self, reset_mask: Any) -> NDArray[np.bool_]:
        """Return which environments to reset, bool[B]; all of them if there is no mask."""
        if reset_mask is None:
            return np.ones(self.num_envs, np.bool_)
        mask = np.asarray(reset_mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"reset_mask must be bool[{self.num_envs}] with at least one True, "
                f"got {mask.dtype}{list(mask.shape)}"
            )
        return mask


def _observation_space(problem: Problem) -> spaces.Space[Any]:
    """Return the space of one environment's observations."""
    size = problem.map_size
    return spaces.Dict(
        {
            "action_mask": spaces.MultiBinary(size**2),
            "map": spaces.Box(0, 1, (size, size), np.float16),
            "placed": spaces.MultiBinary(MAX_CIRCLES),
            "progress": spaces.Box(0, 1, (2,), np.float32),
            "radii": spaces.Box(0, size, (MAX_CIRCLES,), np.float32),
            "radius": spaces.Box(0, size, (1,), np.float32),
        }
    )


def _parse_whole(value: Any) -> int:
    """Return a whole number of a saved state."""
    if type(value) is not int:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return value


def _draw_map_seed(generator: np.random.Generator) -> int:
    """Draw the seed of a map to train on."""
    return int(generator.integers(HELD_OUT_SEED))


def _parse_actions(actions: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return actions as int64 of this shape."""
    array = np.asarray(actions)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"expected integer actions of shape {list(shape)}, got {array.dtype}{list(array.shape)}"
        )
    return array.astype(np.int64, copy=False)


def _parse_render_mode(render_mode: str | None) -> str | None:
    """Check render_mode and return it."""
    if render_mode not in (None, "rgb_array"):
        raise UsageError(f"render_mode={render_mode!r}: expected rgb_array or none")
    return render_mode


def _no_picture() -> None:
    """Warn the caller of ``render`` as gymnasium's own environments do."""
    gymnasium.logger.warn("render() needs render_mode='rgb_array', given when it is created")

"""Atari games through ale-py's own vector environment, which is native code for a whole batch.

Frames are single, 84 x 84, in grayscale: ``run.frame_stack`` stacks them on use, so each is shipped
and stored once. Rewards are the game's; ``actor.reward_clip`` clips those used for learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from pdqn.errors import UsageError


def make_vector(
    env_id: str,
    num_envs: int,
    *,
    frame_skip: int = 4,
    repeat_action_probability: float = 0.25,
    full_action_space: bool = False,
    noop_max: int = 30,
    life_loss: bool = False,
    fire_reset: bool = True,
    max_episode_frames: int = 108_000,
) -> VectorEnv:
    """Make a batch of one game.

    Args:
        env_id: a game such as ``ALE/Breakout-v5``.
        num_envs: size of the batch.
        frame_skip: frames for which an action is held; the last two are merged by maximum.
        repeat_action_probability: probability of repeating the last action (sticky actions; Machado
            et al. 2018).
        full_action_space: whether all 18 actions are available instead of those that the game uses.
        noop_max: largest number of frames without action at the beginning of an episode.
        life_loss: whether a lost life ends the episode; the game goes on, and the next episode
            begins there.
        fire_reset: whether an episode begins with the fire button, if there is one.
        max_episode_frames: frames after which an episode is truncated.

    Raises:
        UsageError: ale-py is not installed, or does not have this game.
    """
    native = _vector_class(env_id)(
        game=gymnasium.spec(env_id).kwargs["game"],
        num_envs=num_envs,
        num_threads=1,  # an actor is one of many processes
        max_num_frames_per_episode=max_episode_frames,
        repeat_action_probability=repeat_action_probability,
        full_action_space=full_action_space,
        autoreset_mode=AutoresetMode.SAME_STEP,
        stack_num=1,
        frameskip=frame_skip,
        noop_max=noop_max,
        episodic_life=False,  # True would begin a new game at a lost life
        reward_clipping=False,
        use_fire_reset=fire_reset,
    )
    return _Game(native, life_loss=life_loss)


def _vector_class(env_id: str) -> Callable[..., VectorEnv]:
    """Import ale-py, register its games with gymnasium, and return its batch class."""
    try:
        import ale_py
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise UsageError(
            f"environment {env_id} needs ale-py: python -m pip install 'pdqn[atari]'"
        ) from error
    gymnasium.register_envs(ale_py)
    return AtariVectorEnv


class _Game(VectorWrapper):
    """A batch of a game: frames without a stack axis, a seed per environment, lives as episodes."""

    def __init__(self, env: VectorEnv, *, life_loss: bool) -> None:
        super().__init__(env)
        self._life_loss = life_loss
        self._lives = np.zeros(env.num_envs, np.int64)
        box = env.single_observation_space
        assert isinstance(box, spaces.Box)
        self.single_observation_space = spaces.Box(0, 255, box.shape[1:], np.uint8)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Begin an episode in every environment; ``seed`` is one for all, or one for each."""
        each: Any = np.asarray(seed, np.int64) if isinstance(seed, list) else seed
        frames, infos = self.env.reset(seed=each, options=options)
        self._lives = np.array(infos["lives"])
        return frames[:, 0], infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        frames, rewards, terminated, truncated, infos = self.env.step(np.asarray(actions))
        if "final_obs" in infos:
            infos = {**infos, "final_obs": infos["final_obs"][:, 0]}
        if self._life_loss:
            # Where a game has ended, the lives are those of the next game.
            terminated = terminated | (infos["lives"] < self._lives) & ~truncated
        self._lives = np.array(infos["lives"])
        return frames[:, 0], rewards, terminated, truncated, infos

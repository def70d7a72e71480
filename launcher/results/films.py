"""Films of a policy: of an environment that renders, or of what the policy sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actors.environments.guard import close_quietly
from actors.environments.guest import Guest
from actors.environments.making import makers
from actors.environments.vector import VectorEnvironment
from launcher.results.checks import check_output
from pdqn import seeds
from pdqn.errors import UsageError, first_line
from pdqn.model import Model
from pdqn.policy import Policy
from pdqn.specs import ACTION_MASK, EnvironmentSpec, Observation

FILM_FORMATS = (".gif", ".webp", ".png", ".mp4")
_MOST_FRAMES = 10_000
_MOST_BYTES = 1 << 30  # memory holds all pictures of a film until it is written
_DEFAULT_FPS = 30
_MAGNIFIED_SIDE = 320  # what a policy sees is small, and is magnified to about this height

Picture = NDArray[np.uint8]


def check_film(path: Path) -> None:
    """Refuse a film that could not be written.

    Raises:
        UsageError: its format is not known or needs a package that is missing, or the file cannot
            be written.
    """
    check_output("--video", path, FILM_FORMATS)
    if path.suffix.lower() == ".mp4":
        _ffmpeg(path)


def check_camera(model: Model) -> None:
    """Refuse an environment that gives no pictures, by taking one.

    Raises:
        UsageError: it does not render, and what it shows the policy is not a picture.
    """
    _camera(model).close()


def record_film(model: Model, path: Path, episodes: int) -> tuple[int, bool]:
    """Film greedy episodes on held-out seeds; return the number of frames, and if that is all.

    A film is cut after 10,000 frames or a gibibyte of pictures.

    Args:
        model: of an environment that renders ``rgb_array``, or has images as observations.
        path: the film; its ending gives the format.
        episodes: number of episodes, filmed one after the other.

    Raises:
        UsageError: there are no pictures, or the format is not known.
    """
    check_film(path)
    frames: list[Picture] = []
    whole = True
    with closing(_camera(model)) as camera:
        shown = itertools.chain.from_iterable(
            camera.episode(seed) for seed in seeds.held_out_seeds(episodes)
        )
        for frame in shown:
            if len(frames) >= _MOST_FRAMES or (len(frames) + 1) * frame.nbytes > _MOST_BYTES:
                whole = False
                break
            frames.append(frame)
    _write_film(path, frames, camera.fps)
    return len(frames), whole


# ---- cameras ----


class _Rendered:
    """A camera for one environment that renders."""

    def __init__(self, env: Any, policy: Policy, guest: Guest) -> None:
        self._env, self._policy, self._guest = env, policy, guest
        self.fps = float(env.metadata.get("render_fps") or _DEFAULT_FPS)

    def episode(self, seed: int) -> Iterator[Picture]:
        """Yield the pictures of an episode, its first and its last one included."""
        self._policy.reset()
        with self._guest:
            observation, info = self._env.reset(seed=seed)
        yield self._picture()
        ended = False
        while not ended:
            action = self._policy.act(observation, info.get(ACTION_MASK))
            with self._guest:
                observation, _, terminated, truncated, info = self._env.step(action)
            yield self._picture()
            ended = terminated or truncated

    def _picture(self) -> Picture:
        with self._guest:
            rendered = self._env.render()
        try:
            return _as_picture(rendered)
        except ValueError as error:
            raise UsageError(_no_pictures(self._policy.model, error)) from error

    def close(self) -> None:
        with self._guest:
            close_quietly(self._env)


class _Seen:
    """A camera for an environment that only shows the policy images: it magnifies these."""

    def __init__(self, model: Model, name: str) -> None:
        self._env = VectorEnvironment(model.spec, model.env_args, 1)
        self._policy, self._name = Policy(model), name
        self.fps = float(_DEFAULT_FPS)

    def episode(self, seed: int) -> Iterator[Picture]:
        """Yield the pictures of an episode, without the one after its last step."""
        self._policy.reset()
        observation, ended = self._env.reset([seed]), False
        while not ended:
            yield self._picture(observation)
            one = {name: values[0] for name, values in observation.items()}
            action = int(self._policy.values(one).argmax())
            transition = self._env.step(np.array([action]))
            observation = transition.observation
            ended = bool(transition.began[0])

    def _picture(self, observation: Observation) -> Picture:
        picture = _as_picture(observation[self._name][0])
        times = max(1, _MAGNIFIED_SIDE // len(picture))
        return picture.repeat(times, axis=0).repeat(times, axis=1)

    def close(self) -> None:
        self._env.close()


def _camera(model: Model) -> _Rendered | _Seen:
    """Make the camera that fits the environment."""
    policy, guest = Policy(model), Guest()
    try:
        with guest:
            made = makers(model.spec.id, {**model.env_args, "render_mode": "rgb_array"})
            env = _rendering(made.single)
        return _Rendered(env, policy, guest)
    except Exception as error:  # noqa: BLE001 - environments raise anything
        refusal = error
    seen = _image_field(model.spec)
    if seen is None:
        told = _no_pictures(model, refusal)
        raise UsageError(f"{told}, and no observation is an image") from refusal
    return _Seen(model, seen)


def _rendering(make: Callable[[], Any] | None) -> Any:
    """Make an environment and take a picture: many that cannot render fail only then."""
    if make is None:
        raise ValueError("it only comes in batches")
    env = make()
    try:
        env.reset(seed=seeds.held_out_seeds(1)[0])
        _as_picture(env.render())
    except BaseException:
        close_quietly(env)
        raise
    return env


def _as_picture(rendered: Any) -> Picture:
    """Convert what was rendered to uint8 [H, W, 3]: a copy, since a canvas may be reused.

    Raises:
        ValueError: it is neither uint8 nor floats of 0..1, or neither gray, RGB nor RGBA.
    """
    if not isinstance(rendered, np.ndarray):
        raise ValueError(f"render() gave {type(rendered).__name__}, not an array")
    values = rendered[:, :, None] if rendered.ndim == 2 else rendered
    shaped = values.ndim == 3 and values.shape[2] in (1, 3, 4) and values.size > 0
    if shaped and values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        values = (values * 255).round().astype(np.uint8)
    if not shaped or values.dtype != np.uint8:
        raise ValueError(
            f"render() gave {rendered.dtype} {list(rendered.shape)}; [H, W, 3] of uint8 or of "
            "floats in 0..1 is needed"
        )
    return values.repeat(3, axis=2) if values.shape[2] == 1 else values[:, :, :3].copy()


def _image_field(spec: EnvironmentSpec) -> str | None:
    """Find the first field whose values are pictures as they are: uint8 [H, W], or gray or RGB."""
    for field in spec.fields:
        plain = len(field.shape) == 2 or field.shape[2:] in ((1,), (3,))
        if field.dtype == "uint8" and plain and not field.categories:
            return field.name
    return None


def _no_pictures(model: Model, error: Exception) -> str:
    return f"--video: {model.spec.id} does not render rgb_array ({first_line(error)})"


# ---- files ----


def _write_film(path: Path, frames: list[Picture], fps: float) -> None:
    if path.suffix.lower() == ".mp4":
        # The codec needs even sides, so odd ones are cut. Imageio would stretch them to multiples
        # of 16.
        height, width = (side // 2 * 2 for side in frames[0].shape[:2])
        size = (width, height)
        writer = _ffmpeg(path).write_frames(str(path), size, fps=fps, macro_block_size=2)
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

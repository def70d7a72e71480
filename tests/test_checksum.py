"""Files of tensors: whatever is damaged in one is found before its content is used."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.checkpoint import load_newest, save_checkpoint
from pdqn.checksum import DamagedError
from pdqn.config import Config, NetworkConfig
from pdqn.errors import RunError, UsageError
from pdqn.model import load_checked, read_model, save_model, write_atomically
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

CONFIG = Config(network=NetworkConfig(hidden=4, layers=1))
SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (3,), "float32"),), 2)
STATE = {"learner_steps": 7, "online": {"weight": torch.arange(256.0)}}
FLIPS = 400


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def bits_of(content: bytes) -> list[int]:
    """Choose bits of all regions of a file, and all bits of its end."""
    chosen = np.random.default_rng(5).choice(8 * len(content), FLIPS, replace=False)
    return [*chosen.tolist(), *range(8 * (len(content) - 100), 8 * len(content))]


def is_same(found: dict[str, Any]) -> bool:
    return found["learner_steps"] == 7 and torch.equal(
        found["online"]["weight"], STATE["online"]["weight"]
    )


def loaded(path: Path) -> Any:
    with path.open("rb") as file:
        return load_checked(file)


def test_a_checkpoint_with_a_flipped_bit_is_refused_in_one_line_that_names_it(tmp_path: Path):
    file = save_checkpoint(tmp_path, STATE, keep=1) / "learner.pth"
    whole = file.read_bytes()
    for bit in bits_of(whole):
        file.write_bytes(flipped(whole, bit))
        said: list[str] = []
        try:
            state = load_newest(tmp_path, said.append)
        except RunError:
            assert said[0].startswith(f"checkpoint {file.parent} cannot be read (damaged"), bit
            assert "\n" not in said[0]
        else:  # the comment's length, of which nothing depends
            assert state is not None
            assert is_same(state), bit
            assert bit // 8 in range(len(whole) - 78, len(whole) - 76), bit


def test_a_model_with_a_flipped_bit_is_refused_in_one_line_that_names_it(tmp_path: Path):
    path = tmp_path / "final_model.pth"
    save_model(path, CONFIG, SPEC, build_network(SPEC, CONFIG.network), 3)
    whole = path.read_bytes()
    for bit in bits_of(whole)[:FLIPS]:
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(UsageError, match=r"/final_model\.pth: .*\(damaged") as caught:
            read_model(path)
        assert "\n" not in str(caught.value)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "its last byte is missing": lambda whole: whole[:-1],
    "its last 4 KiB were never written": lambda whole: whole[:-4096] + bytes(4096),
    "4 KiB in its middle were never written": lambda whole: (
        whole[:4096] + bytes(4096) + whole[8192:]
    ),
    "more follows": lambda whole: whole + b"x",
    "only its checksum is left": lambda whole: whole[-76:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_damage_is_found_as_well(tmp_path: Path, damage: str):
    path = tmp_path / "learner.pth"
    write_atomically(path, {"tensor": torch.ones(5000)})
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DamagedError, match="damaged"):
        loaded(path)


def test_files_of_earlier_versions_without_a_checksum_are_read(tmp_path: Path):
    path = tmp_path / "checkpoints" / "step-000000007" / "learner.pth"
    path.parent.mkdir(parents=True)
    torch.save(STATE, path)
    state = load_newest(tmp_path, pytest.fail)
    assert state is not None
    assert is_same(state)


def test_other_programs_read_a_file_with_a_checksum(tmp_path: Path):
    path = tmp_path / "learner.pth"
    write_atomically(path, STATE)
    assert is_same(torch.load(path, weights_only=True))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"pdqn sha256 ")

"""A person's own maps in circle placement: files, forbidden zones, circles placed before."""

import inspect
import json
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from actors.circle_placement import map_files
from actors.circle_placement.baselines import random_valid_actions
from actors.circle_placement.environment import CirclePlacementEnv, CirclePlacementVectorEnv
from actors.circle_placement.maps import FORBIDDEN, load_maps
from actors.circle_placement.problem import OwnMaps, Problem
from actors.environments.registration import CIRCLE_PLACEMENT_ID
from launcher.evaluation.evaluate import evaluate
from launcher.plan.prepare import prepare
from launcher.plan.report import as_json
from launcher.results.circle_placement import draw_strategy
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import load_model, save_model
from pdqn.networks import build_network
from pdqn.policy import Policy

PLACED = [(4, 9, 3), (19, 25, 2)]


def some_map(height: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Make a map with a heavy corner and a forbidden block."""
    cells = np.random.default_rng(seed).random((height, width))
    cells[:6, :6] += 3.0
    cells[8:11, 3:9] = np.nan
    return cells


@pytest.fixture
def own(tmp_path: Path) -> str:
    np.save(tmp_path / "own.npy", some_map(21, 34))
    return str(tmp_path / "own.npy")


def problem_of(path: str, radii: Any = (4, 3, 2), **own: Any) -> Problem:
    return Problem.parse("auto", radii, False, own=OwnMaps(path, **own))


def valid_centres(
    cells: NDArray[np.float64], radius: int, circles: list[Any], settings: dict[str, Any]
) -> NDArray[np.bool_]:
    """Find the valid centres by asking every cell of every disc."""
    height, width = cells.shape
    i, j = np.mgrid[:height, :width]
    valid = np.zeros(cells.shape, np.bool_)
    for x, y in np.ndindex(height, width):
        disc = (i - x) ** 2 + (j - y) ** 2 <= radius**2
        within = radius <= x < height - radius and radius <= y < width - radius
        zone = disc if settings.get("keep_out") == "disc" else (i == x) & (j == y)
        valid[x, y] = within and not np.isnan(cells[zone]).any()
        for a, b, other in [] if settings.get("overlap") else circles:
            least = radius + other + settings.get("spacing", 0)
            valid[x, y] &= (x - a) ** 2 + (y - b) ** 2 >= least**2
    return valid


@pytest.mark.parametrize(
    "settings",
    [{}, {"keep_out": "disc"}, {"placed": PLACED}, {"placed": PLACED, "overlap": True},
     {"placed": "4,9,3; 19,25,2", "spacing": 2, "keep_out": "disc"}, {"radii": "random"}],
)  # fmt: skip
def test_an_episode_on_a_rectangle_follows_the_rules_of_a_naive_twin(settings, own):
    cells = np.load(own)
    env = CirclePlacementEnv(**{"maps": own, "radii": "4,3,2", **settings})
    size = env.observation_space["map"].shape[0]  # type: ignore[index]
    assert size == 40
    circles = list(PLACED) if "placed" in settings else []
    left = np.nan_to_num(cells)
    i, j = np.mgrid[: cells.shape[0], : cells.shape[1]]
    for x, y, radius in circles:
        left[(i - x) ** 2 + (j - y) ** 2 <= radius**2] = 0.0
    total, generator, ended = left.sum(), np.random.default_rng(0), False
    observation, _ = env.reset(seed=3)
    while not ended:
        mask = observation["action_mask"].reshape(size, size)
        radius = int(observation["radius"][0])
        valid = valid_centres(cells, radius, circles, settings)
        np.testing.assert_array_equal(mask[:21, :34], valid)
        assert not mask[21:].any()
        assert not mask[:, 34:].any()
        assert not observation["map"][21:].any()
        assert not observation["map"][:, 34:].any()
        action = int(random_valid_actions(observation["action_mask"][None], generator)[0])
        x, y = divmod(action, size)
        observation, reward, ended, _, _ = env.step(action)
        disc = (i - x) ** 2 + (j - y) ** 2 <= radius**2
        assert reward == pytest.approx(left[disc].sum() / total, abs=1e-6)
        left[disc] = 0.0
        circles.append((x, y, radius))
    assert env.get_state()["episode"]["actions"]


@pytest.mark.parametrize("settings", [{}, {"keep_out": "disc", "spacing": 3}, {"overlap": "true"}])
@pytest.mark.parametrize("radii", ["random", "5,4,2"])
def test_exact_greedy_is_that_of_the_environment_and_below_the_bound(radii, settings, own):
    env = CirclePlacementEnv(maps=own, radii=radii, placed=PLACED, suggest=True, **settings)
    for seed in (0, 1_000_000):
        _, info = env.reset(seed=seed)
        while "end" not in info:
            info = env.step(info["suggested_action"])[-1]
        found = env.baselines([seed])
        assert info["coverage"] == pytest.approx(found["exact_greedy"][0], abs=1e-12)
        assert found["random"][0] <= found["exact_greedy"][0] <= found["upper_bound"][0]


GENERATED = [508112075, 2806546973]
RADII = [9, 8, 8, 7, 4, 4, 3, 3, 3, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_generated_maps_and_radii_are_those_of_earlier_versions_to_the_bit():
    standard = Problem.parse("auto", "fixed", False)
    assert [zlib.crc32(standard.instance(seed).weights.data) for seed in (0, 7)] == GENERATED
    assert Problem.parse(64, "random", False).instance(5).radii.tolist() == RADII
    assert Problem.parse(64, "fixed", False) == Problem.parse("64", "fixed", "false")


# ---- files ----


def geotiff(path: Path, cells: NDArray[np.float64], **profile: Any) -> None:
    rasterio = pytest.importorskip("rasterio")
    from rasterio import Affine

    bands = cells.reshape(-1, *cells.shape[-2:])
    filled = np.where(np.isnan(bands), -9999.0, bands).astype(np.float32)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=cells.shape[-2], width=cells.shape[-1],
        dtype="float32", crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -20, 4_649_000),
        nodata=-9999, **profile,
    ) as file:  # fmt: skip
        file.write(filled)


def test_every_format_gives_the_same_map(tmp_path: Path):
    cells = np.random.default_rng(0).integers(0, 200, (12, 17)).astype(np.float64)
    np.save(tmp_path / "a.npy", cells.astype(np.uint8))
    np.save(tmp_path / "b.npy", cells[None].astype(np.float16))
    Image.fromarray(cells.astype(np.uint8)).save(tmp_path / "c.png")
    Image.fromarray(cells.astype(np.uint16)).save(tmp_path / "d.png")
    for name, separator in (("e.csv", ","), ("f.csv", "; "), ("g.csv", "\t"), ("h.csv", " ")):
        lines = (separator.join(map(str, row)) for row in cells.tolist())
        (tmp_path / name).write_text("\ufeff" * (name == "f.csv") + "\n".join(lines))
    (tmp_path / ".hidden.npy").write_bytes(b"not a map")
    (tmp_path / "notes.txt").write_text("not a map")
    maps = load_maps(str(tmp_path))
    expected = ["a.npy", "b.npy[0]", "c.png", "d.png", "e.csv", "f.csv", "g.csv", "h.csv"]
    assert list(maps.names) == expected
    for weights in maps.weights:
        np.testing.assert_array_equal(weights[:12, :17], cells)
    assert set(maps.shapes) == {(12, 17)}


@pytest.mark.parametrize("compress", ["none", "lzw", "deflate"])
def test_a_geotiff_knows_its_place_and_its_cells_without_data(compress, tmp_path: Path):
    geotiff(tmp_path / "town.tif", some_map(20, 30), compress=compress)
    np.save(tmp_path / "town.npy", some_map(20, 30))
    maps, same = load_maps(str(tmp_path / "town.tif")), load_maps(str(tmp_path / "town.npy"))
    assert maps == same
    assert (maps.fits[0, 8:11, 3:9] == FORBIDDEN).all()
    place = maps.places[0]
    assert place is not None
    assert place.system == "EPSG:32633"
    assert place.coordinates(0, 0) == (500_005, 4_648_990)
    assert place.coordinates(2, 5) == (500_055, 4_648_950)


def test_without_rasterio_a_geotiff_says_what_to_install(tmp_path: Path, monkeypatch):
    (tmp_path / "town.tif").write_bytes(b"II*\0")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UsageError, match=r"town.tif.*needs rasterio: .*pip install 'pdqn\[geo\]'"):
        load_maps(str(tmp_path / "town.tif"))


def test_an_empty_field_of_a_csv_is_forbidden(tmp_path: Path):
    path = tmp_path / "map.csv"
    path.write_text("\n".join(["1,2,,4,5"] + ["1,2,3,4,5"] * 4) + "\n\n")
    maps = load_maps(str(path))
    assert maps.fits[0, 0, 2] == FORBIDDEN
    assert (maps.fits[0, :5, :5] == FORBIDDEN).sum() == 1
    assert maps.fits[0, 2, 2] == 2


def npy_that_claims(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def png_that_claims(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def array(**changes: Any) -> NDArray[Any]:
    cells = np.ones((20, 20))
    for key, value in changes.items():
        cells[int(key[1:]), 7] = value
    return cells


BAD = {
    "negative": (array(r3=-1), r"map.npy has -1 at row 3, column 7; 0 to 1e\+30, or NaN"),
    "infinite": (array(r3=np.inf), "has inf at row 3, column 7; 0 to"),
    "zero": (np.zeros((20, 20)), r"no weight above 1e-30; at least one"),
    "nothing but NaN": (np.full((20, 20), np.nan), "no weight above 1e-30"),
    "empty": (np.empty((0, 5)), "the map of 0 x 5 cells is empty"),
    "no maps": (np.empty((0, 5, 5)), r"shape \[0, 5, 5\]; expected \[rows, columns\] or \[maps,"),
    "vector": (np.ones(5), r"shape \[5\]; expected \[rows, columns\]"),
    "complex": (np.ones((5, 5), np.complex64), "holds complex64; numbers of at most 64 bits"),
    "texts": (np.full((5, 5), "a"), "holds <U1; numbers of at most 64 bits"),
    "pickle": (np.array([[print, 1]], dtype=object), "holds object; numbers of at most 64 bits"),
    "wide": (np.ones((1, 1025)), "has 1 x 1025 cells; at most 1,024 a side .* lower resolution"),
    "claims much": (npy_that_claims((40000, 1024, 1024)), "more than 33,554,432 cells"),
    "claims more": (npy_that_claims((10**9, 10**9)), "at most 1,024 a side"),
    "cut off": (npy_that_claims((20, 20)), "map.npy"),
    "not an npy": (b"hello", "magic|EOF|read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_npy_is_one_line_that_names_it(name, tmp_path: Path):
    content, expected = BAD[name]
    path = tmp_path / "map.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    refused(str(path), expected)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("map.csv", b"", "the file is empty"),
        ("map.csv", b"a,b\n1,2", "line 1: 'a' is not a number"),
        ("map.csv", b"1,2\n1,2,3", "line 2 has 3 numbers, the first one 2"),
        ("map.csv", b"1;2,5\n1;2", "line 1: '2,5' is not a number"),
        ("map.csv", b"\xff\xfe\x00", "decode"),
        ("map.csv", b"1," * 1030, "1 x 1031 cells; at most 1,024 a side"),
        ("map.csv", b"1\n" * 1030, "1025 x 1 cells; at most 1,024 a side"),
        ("map.png", b"hello", "it is not a PNG"),
        ("map.png", png_that_claims(60_000, 60_000), "60000 x 60000 cells; at most 1,024 a side"),
        ("map.png", png_that_claims(30, 30), "map.png"),
        ("map.jpg", b"hello", r"expected a .npy, .png, .csv or .tif file, or a folder of them"),
        ("map.npz", b"hello", r"expected a .npy, .png, .csv or .tif file, or a folder of them"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(name, content, expected, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    refused(str(tmp_path / name), expected)


def refused(path: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as error:
        CirclePlacementEnv(maps=path, radii="1")
    assert str(error.value).startswith("maps=")
    assert "\n" not in str(error.value)
    assert Path(path).name in str(error.value)


def test_other_bad_files_are_refused(tmp_path: Path):
    Image.new("RGB", (20, 20)).save(tmp_path / "colour.png")
    refused(str(tmp_path / "colour.png"), "the picture is RGB; grey of 1, 8 or 16 bits")
    os.mkfifo(tmp_path / "pipe.npy")
    refused(str(tmp_path / "pipe.npy"), "not a regular file")
    (tmp_path / "folder").mkdir()
    refused(str(tmp_path / "folder"), r"has no .npy, .png, .csv, .tif, .tiff file")
    (tmp_path / "huge.csv").touch()
    os.truncate(tmp_path / "huge.csv", 1 << 40)
    refused(str(tmp_path / "huge.csv"), "the file has 1,099,511,627,776 bytes; at most 67,108,864")


VIRTUAL = """<VRTDataset rasterXSize="20" rasterYSize="20">
  <VRTRasterBand dataType="Float32" band="1">
    <SimpleSource>
      <SourceFilename relativeToVRT="1">other.tif</SourceFilename>
      <SourceBand>1</SourceBand>
    </SimpleSource>
  </VRTRasterBand>
</VRTDataset>"""


def test_a_bad_geotiff_is_refused(tmp_path: Path):
    geotiff(tmp_path / "three.tif", np.ones((3, 20, 20)))
    refused(str(tmp_path / "three.tif"), "it has 3 bands; one is accepted")
    geotiff(tmp_path / "wide.tif", np.ones((2, 2000)))
    refused(str(tmp_path / "wide.tif"), "2 x 2000 cells; at most 1,024 a side")
    # A file of another format may name other files and code.
    geotiff(tmp_path / "other.tif", np.ones((20, 20)))
    (tmp_path / "virtual.tif").write_text(VIRTUAL)
    refused(str(tmp_path / "virtual.tif"), "cannot be read as a GeoTIFF")


def test_a_missing_file_says_that_every_host_needs_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(map_files.socket, "gethostname", lambda: "actors-7")
    with pytest.raises(UsageError) as error:
        CirclePlacementEnv(maps="town.npy")
    assert str(error.value) == (
        f"maps='town.npy': {tmp_path / 'town.npy'} is missing on actors-7; each host of a run "
        "reads it, and needs it under this path"
    )


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"radii": "11"}, r"radii='11': a circle of radius 11 has no place on the map own.npy of "
                          r"21 x 34 cells; at most 10 does"),
        ({"radii": "7..11", "circles": 3}, r"radii='7..11': a circle of radius 11 has no place"),
        ({"radii": "9", "keep_out": "disc", "placed": "10,17,5"}, r"radius 9 has no place"),
        ({"radii": "3..5"}, r"circles='': expected the number of circles for radii=3..5, 1 to 20"),
        ({"radii": "3..5", "circles": "21"}, "circles='21': expected the number"),
        ({"radii": "5..3", "circles": 2}, r"radii='5..3': expected \"fixed\""),
        ({"radii": "0..3", "circles": 2}, r"radii='0..3': expected \"fixed\""),
        ({"circles": 4}, "circles=4: it is for a range of radii"),
        ({"spacing": -1}, "spacing=-1: expected a whole number >= 0"),
        ({"spacing": 1, "overlap": True}, "spacing=1: circles that may overlap have none"),
        ({"keep_out": "rim"}, "keep_out='rim': expected centre or disc"),
        ({"placed": "1,2"}, "placed='1,2': expected row,column,radius"),
        ({"placed": [[1, 2, 0]]}, "expected row,column,radius"),
        ({"placed": [[1, -2, 1]]}, "expected row,column,radius"),
        ({"placed": 7}, "placed=7: expected row,column,radius"),
        ({"placed": "21,2,1"}, "placed=21,2,1: this centre lies outside the map own.npy"),
        ({"placed": "10,17,500"}, "own.npy has no weight that can be covered"),
        ({"split_seed": "x"}, "split_seed='x': expected a whole number >= 0"),
        ({"map_size": 32}, "map_size=32: expected 34 to 1024, as a side of maps="),
        ({"maps": 5}, "maps=5: expected the path of"),
        ({"maps": "", "placed": "1,2,3"}, "placed='1,2,3': it is for your own maps"),
        ({"maps": "", "split_seed": 4}, "split_seed=4: it is for your own maps"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_by_name(settings, expected, own):
    with pytest.raises(UsageError, match=expected) as error:
        CirclePlacementVectorEnv(2, **{"maps": own, "radii": "3,2", **settings})
    assert "\n" not in str(error.value)


def test_settings_of_own_maps_that_say_nothing_are_accepted_without_maps():
    env = CirclePlacementEnv(32, placed=[], split_seed="0", keep_out="centre", forbidden="")
    assert env.about == ""
    assert env.held_out_episodes == 0


def test_radii_of_a_range_are_drawn_for_every_episode(own):
    problem = Problem.parse(64, "3..6", False, circles="2..4")
    instances = [problem.instance(seed) for seed in range(300)]
    assert {one.num_circles for one in instances} == {2, 3, 4}
    drawn = np.concatenate([one.radii[: one.num_circles] for one in instances])
    assert set(drawn.tolist()) == {3, 4, 5, 6}
    assert all((np.diff(one.radii) <= 0).all() for one in instances)
    assert problem.instance(7).radii.tolist() == instances[7].radii.tolist()
    assert Problem.parse(64, "5..5", False, circles=3).instance(0).radii[:4].tolist() == [
        5,
        5,
        5,
        0,
    ]
    assert CirclePlacementEnv(maps=own, radii="3..6", circles=2).held_out_episodes == 0


def test_spacing_also_keeps_circles_of_generated_maps_apart():
    env = CirclePlacementEnv(32, radii=[4] * 5, spacing=3, suggest=True)
    _, info = env.reset(seed=0)
    while "end" not in info:
        action = info["suggested_action"]
        info = env.step(action)[-1]
    actions = env.get_state()["episode"]["actions"]
    centres = np.stack(np.divmod(actions, 32), 1)
    apart = np.hypot(*(centres[:, None] - centres[None]).T)
    assert apart[~np.eye(len(centres), dtype=bool)].min() >= 11
    env.reset(seed=0)
    env.step(int(actions[0]))
    with pytest.raises(ValueError, match="at least 11 is needed"):
        env.step(int(actions[0]))


def test_an_action_that_own_maps_forbid_is_explained(own):
    env = CirclePlacementEnv(maps=own, radii="2", keep_out="disc")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(12, 4\) it meets a forbidden zone .* radius 1 fits"):
        env.step(12 * 40 + 4)
    with pytest.raises(
        ValueError, match="out of bounds, as x = 19 must be within 2 to 18 and 2 to 31"
    ):
        env.step(19 * 40 + 10)


def test_a_forbidden_file_holds_for_all_maps_or_for_each(tmp_path: Path):
    np.save(tmp_path / "maps.npy", np.ones((2, 20, 24)))
    zone = np.zeros((20, 24))
    zone[5:8, 5:8] = 255
    Image.fromarray(zone.astype(np.uint8)).save(tmp_path / "zone.png")
    np.save(tmp_path / "each.npy", np.stack([zone, np.zeros_like(zone)]))
    path = str(tmp_path / "maps.npy")
    both = load_maps(path, forbidden=str(tmp_path / "zone.png"))
    first = load_maps(path, forbidden=str(tmp_path / "each.npy"))
    for maps, zones in ((both, [9, 9]), (first, [9, 0])):
        blocked = (maps.fits[:, :20, :24] == FORBIDDEN).sum((1, 2))
        assert blocked.tolist() == zones
        assert [(w == 0)[:20, :24].sum() for w in maps.weights] == zones
    np.save(tmp_path / "other.npy", np.zeros((20, 20)))
    with pytest.raises(UsageError, match=r"other.npy has 20 x 20 cells, and the map .* 20 x 24"):
        load_maps(path, forbidden=str(tmp_path / "other.npy"))
    np.save(tmp_path / "three.npy", np.zeros((3, 20, 24)))
    with pytest.raises(UsageError, match="3 of them for 2 maps; expected one for all"):
        load_maps(path, forbidden=str(tmp_path / "three.npy"))


# ---- sets of maps ----


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "maps").mkdir()
    for number in range(10):
        np.save(tmp_path / "maps" / f"{number}.npy", some_map(17 + number, 30, number))
    return str(tmp_path / "maps")


def test_maps_are_split_by_seed_and_training_never_meets_a_held_out_one(folder):
    maps = problem_of(folder).maps
    assert maps is not None
    assert len(maps.training) == 8
    assert sorted(maps.training + maps.held_out) == list(range(10))
    assert {maps.index_of(seed) for seed in range(200)} == set(maps.training)
    assert {maps.index_of(1_000_000 + k) for k in range(2)} == set(maps.held_out)
    splits = {problem_of(folder, split_seed=seed).maps.held_out for seed in range(5)}  # type: ignore[union-attr]
    assert len(splits) > 1
    assert problem_of(folder, split_seed="0") == problem_of(folder)
    assert problem_of(folder, split_seed=1) != problem_of(folder, split_seed=2)


def test_maps_of_different_sizes_are_padded_to_the_largest(folder):
    envs = CirclePlacementVectorEnv(6, maps=folder, radii="4,3")
    problem = problem_of(folder, (4, 3))
    observations, infos = envs.reset(seed=0)
    assert observations["map"].shape == (6, 32, 32)
    for observation, seed in zip(observations["map"], infos["map_seed"], strict=True):
        height, width = problem.shape_of(int(seed))
        assert observation[:height, :width].any(axis=1).all()
        assert not observation[height:].any()
    assert CirclePlacementEnv(48, maps=folder).map_shape == (26, 30)


def test_the_start_tells_of_the_maps_and_evaluates_each_held_out_one_once(folder, own):
    def planned(**env_args: Any) -> tuple[Config, dict[str, Any]]:
        run = {"env": CIRCLE_PLACEMENT_ID, "env_args": env_args}
        replay = {"capacity": 1000, "store": "dense"}
        _, machine, plan = prepare(build(("test", {"run": run, "replay": replay})))
        return plan.config, as_json(machine, plan)["plan"]

    config, told = planned(maps=folder)
    assert told["maps"].startswith(f"10 maps of up to 26 x 30 cells from {folder}, on squares of ")
    assert told["maps"].endswith("forbidden: 8 to train on, 2 held out for evaluation")
    assert (config.evaluation.episodes, config.network.kind) == (2, "qmap")
    assert told["chosen"]["evaluation"]["episodes"] == 2
    config, told = planned(maps=own, radii="random")
    assert "training and evaluation are on this same map" in told["maps"]
    assert config.evaluation.episodes == 32  # other circles every time
    assert planned(map_size=16)[1]["maps"] == ""


def test_sets_are_equal_if_their_contents_are(tmp_path: Path, own):
    np.save(tmp_path / "copy.npy", some_map(21, 34))
    assert problem_of(own) == problem_of(str(tmp_path / "copy.npy"))
    assert len({problem_of(own), problem_of(str(tmp_path / "copy.npy"))}) == 1
    assert problem_of(own) != problem_of(own, keep_out="disc")
    assert problem_of(own) != problem_of(own, placed="5,5,1")
    before = problem_of(own)
    np.save(own, some_map(21, 34, seed=9))
    assert problem_of(own) != before


def test_an_episode_does_not_continue_on_maps_that_have_changed(own):
    env = CirclePlacementEnv(maps=own, radii="3,2", suggest=True)
    _, info = env.reset(seed=0)
    env.step(info["suggested_action"])
    state = env.get_state()
    same = CirclePlacementEnv(maps=own, radii="3,2")
    same.reset()
    same.set_state(state)
    assert same.exact_greedy() == env.exact_greedy()
    np.save(own, some_map(21, 34, seed=9))
    other = CirclePlacementEnv(maps=own, radii="3,2")
    other.reset()
    with pytest.raises(ValueError, match=r"the maps in .*own.npy have changed"):
        other.set_state(state)


# ---- pictures, networks, documentation ----


def test_a_picture_has_the_shape_of_the_map_and_the_circles_placed_before(own):
    env = CirclePlacementEnv(maps=own, radii="3,2", render_mode="rgb_array", suggest=True)
    other = CirclePlacementEnv(
        maps=own, radii="3,2", placed="12,20,4", render_mode="rgb_array", suggest=True
    )
    shown = []
    for one in (env, other):
        one.reset(seed=0)
        shown.append(one.render())
        assert shown[-1].shape == (21 * 15 + 36, 34 * 15, 3)
    assert (shown[0] != shown[1]).any()


def test_an_untrained_network_plays_exact_greedy_on_own_maps_and_draws_it(
    own, tmp_path: Path, capfd
):
    args = {"maps": own, "radii": "5,4,3,2", "placed": "12,20,4", "spacing": 1, "keep_out": "disc"}
    run = {"env": CIRCLE_PLACEMENT_ID, "env_args": args}
    replay = {"capacity": 1000, "store": "dense"}
    spec, _, plan = prepare(build(("test", {"run": run, "replay": replay})))
    network = build_network(spec, plan.config.network)
    save_model(tmp_path / "model.pth", plan.config, spec, network, 0)
    model = load_model(tmp_path / "model.pth")
    with Image.open(draw_strategy(model, tmp_path / "strategy.png")) as picture:
        assert picture.size[0] > 1000
    assert evaluate(tmp_path / "model.pth", 9, as_json=True) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["episodes"] == 1  # on a single map, all would be the same
    assert printed.err.startswith(f"1 map of 21 x 34 cells from {own}")
    env, policy = CirclePlacementEnv(**args), Policy(model)
    observation, info = env.reset(seed=0)
    while "end" not in info:
        action = policy.act(observation, info["action_mask"])
        observation, *_, info = env.step(action)
    greedy = env.baselines([0])["exact_greedy"][0]
    assert info["coverage"] == pytest.approx(greedy, rel=2e-3)  # the map is rounded to float16


def test_the_example_of_the_documentation_works(tmp_path: Path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "environment.md").read_text("utf-8")
    section = text.partition("## Your own maps")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["env"].map_shape == (60, 100)
    assert 0.2 < names["coverage"] <= 1
    # A table row for every argument of the environment, and no other.
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    arguments = set(inspect.signature(CirclePlacementEnv).parameters)
    assert rows == arguments - {"render_mode", "suggest"}

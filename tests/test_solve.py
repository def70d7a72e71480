"""The command ``pdqn solve``: plans for a person's own map."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from actors.circle_placement.environment import CirclePlacementEnv
from actors.circle_placement.problem import OwnMaps, Problem
from actors.environments.registration import CIRCLE_PLACEMENT_ID
from launcher.cli.commands import cli
from launcher.plan.prepare import prepare
from launcher.results.solve import solve
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import save_model
from pdqn.networks import build_network

RADII = "6,5,4,3,2"


@pytest.fixture
def town(tmp_path: Path) -> str:
    """Save a map like the generated ones, with a lake."""
    cells = Problem.parse(48, "fixed", False).instance(1_000_000).weights[:40].astype(np.float64)
    cells[10:14, 20:30] = np.nan
    np.save(tmp_path / "town.npy", cells)
    return str(tmp_path / "town.npy")


def solved(capsys: Any, path: str, radii: str = RADII, **options: Any) -> dict[str, Any]:
    own = {key: options.pop(key) for key in ("keep_out", "placed", "forbidden") if key in options}
    spacing = options.pop("spacing", 0)
    assert solve(OwnMaps(path, **own), radii, spacing, 0.1, 0, as_json=True, **options) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "settings", [{}, {"keep_out": "disc", "placed": [[5, 5, 4], [30, 40, 6]], "spacing": 2}]
)
def test_the_environment_collects_what_a_plan_promises(settings, town, capsys):
    plan = solved(capsys, town, **settings)
    env = CirclePlacementEnv(maps=town, radii=RADII, **settings)
    env.reset(seed=0)
    info, shares = {}, []
    for circle in plan["circles"]:
        _, reward, _, _, info = env.step(circle["row"] * 48 + circle["column"])
        shares.append(reward)
    assert [circle["radius"] for circle in plan["circles"]] == [6, 5, 4, 3, 2]
    assert info["end"] == "all_placed"
    assert info["coverage"] == pytest.approx(plan["coverage"], abs=1e-12)
    np.testing.assert_allclose([circle["share"] for circle in plan["circles"]], shares, atol=1e-12)
    greedy = env.baselines([0])["exact_greedy"][0]
    assert plan["exact_greedy"] == pytest.approx(greedy, abs=1e-12)
    assert plan["exact_greedy"] < plan["coverage"] <= plan["bound"]
    gap = plan["bound"] - plan["exact_greedy"]
    assert plan["share_of_gap_closed"] == pytest.approx((plan["coverage"] - greedy) / gap)


def test_a_plan_is_printed_and_written_with_its_coordinates(town, tmp_path: Path, capsys):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "town.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=40, width=48, dtype="float32", nodata=np.nan,
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 500_000, 0, -20, 4_649_000),
    ) as file:  # fmt: skip
        file.write(np.load(town).astype(np.float32), 1)
    out, picture = tmp_path / "plan.csv", tmp_path / "plan.png"
    assert solve(OwnMaps(str(path)), RADII, 0, 0.1, 0, out=out, picture=picture) == 0
    printed = capsys.readouterr().out
    assert "town.tif: 5 circles on 40 x 48 cells" in printed
    assert "of the gap" in " ".join(printed.split())
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["radius"] for row in rows] == RADII.split(",")
    for row in rows:
        assert float(row["x"]) == 500_000 + 10 * (int(row["column"]) + 0.5)
        assert float(row["y"]) == 4_649_000 - 20 * (int(row["row"]) + 0.5)
    with Image.open(picture) as drawn:
        assert drawn.size == (48 * 11, 40 * 11 + 36)


def test_a_search_begins_from_a_policy_for_maps_of_another_size(town, tmp_path: Path, capsys):
    run = {"env": CIRCLE_PLACEMENT_ID, "env_args": {"map_size": 32}}
    replay = {"capacity": 1000, "store": "dense"}
    spec, _, plan = prepare(build(("test", {"run": run, "replay": replay})))
    network = build_network(spec, plan.config.network)
    save_model(tmp_path / "model.pth", plan.config, spec, network, 0)
    found = solved(capsys, town, model=tmp_path / "model.pth")
    # Untrained, it plays exact greedy, but for the rounding of the map.
    assert found["policy"] == pytest.approx(found["exact_greedy"], rel=5e-3)
    assert found["coverage"] >= found["policy"]
    with pytest.raises(UsageError, match="is neither a model file nor a run directory"):
        solved(capsys, town, model=tmp_path / "nothing")


def test_where_greedy_is_best_there_is_no_gap_to_close(tmp_path: Path, capsys):
    np.savetxt(tmp_path / "even.csv", np.ones((20, 20)), delimiter=",")
    plan = solved(capsys, str(tmp_path / "even.csv"), "3,2")
    assert plan["share_of_gap_closed"] is None
    assert plan["coverage"] == pytest.approx((29 + 13) / 400)


@pytest.mark.parametrize(
    ("radii", "options", "expected"),
    [
        ("random", {}, "--radii random: expected the radius of each circle"),
        ("30", {}, "a circle of radius 30 has no place on the map town.npy"),
        (RADII, {"out": "plan.txt"}, "--out plan.txt: expected a name that ends in .csv"),
        (RADII, {"picture": "nothing/plan.png"}, "there is no folder nothing"),
    ],
)
def test_bad_options_are_refused_by_name(radii, options, expected, town, capsys):
    files = {key: Path(value) for key, value in options.items()}
    with pytest.raises(UsageError, match=expected):
        solved(capsys, town, radii, **files)


def test_a_file_of_several_maps_is_refused(tmp_path: Path, capsys):
    np.save(tmp_path / "maps.npy", np.ones((3, 20, 20)))
    with pytest.raises(UsageError, match=r"maps.npy: 3 maps; expected the file of a single one"):
        solved(capsys, str(tmp_path / "maps.npy"), "3")


def test_every_option_reaches_the_search(monkeypatch, tmp_path: Path):
    given: list[Any] = []
    monkeypatch.setattr(
        "launcher.results.solve.solve",
        lambda *values, **others: given.append((values, others)) or 0,
    )
    options = (
        "--time 3s --model run --spacing 2 --forbidden lake.png --keep-out disc --placed 1,2,3 "
        "--seed 4 --out plan.csv --picture plan.png --json"
    )
    asked = ["solve", "town.npy", "--radii", "5,4", *options.split()]
    assert CliRunner().invoke(cli, asked, standalone_mode=False).return_value == 0
    own = OwnMaps("town.npy", "lake.png", "disc", "1,2,3")
    files = {"model": Path("run"), "out": Path("plan.csv"), "picture": Path("plan.png")}
    assert given == [((own, "5,4", 2, 3.0, 4), {**files, "as_json": True})]

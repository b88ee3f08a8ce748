"""A round with many gateways, one third of them and the centre killed in the middle: it ends, and ends right."""

import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cloud.learning.export import default_backbone, set_default_backbone
from common.errors import EnvironmentFault
from common.ids import layer_hash
from common.packing import read_packed
from common.statistics import Statistics
from simulations.processes import Centre, wait_for
from simulations.virtual import made_up, statistics_of

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES, SCENARIO, DIMENSION = ("normal", "tear"), "belt", 12
A_THIRD = int(os.environ.get("HEADFRAME_ROUND_NODES", "102")) // 3
"""Of the nodes; `HEADFRAME_ROUND_NODES=1000` is for trials by hand."""
ANSWERS_WITHIN_S = 5.0
THIRDS = tuple(tuple(f"gw-{part}-{number:03d}" for number in range(A_THIRD)) for part in "abc")


@pytest.fixture
def centre(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> Iterator[Centre]:
    """A centre with a small backbone of its own and one dataset."""
    made = Centre(tmp_path / "centre", {"learning": {"round_deadline_s": 12.0 + A_THIRD / 10, "quorum": 0.5}})
    layer, layers = tiny_backbone(DIMENSION), made.folder / "data" / "layers"
    layers.mkdir(parents=True)
    (layers / layer_hash(layer)).write_bytes(layer)
    set_default_backbone(layers, layer_hash(layer))
    rng = np.random.default_rng(0)
    for label in CLASSES:
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(12):
            picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) // (1 if label == "normal" else 4)
            cv2.imwrite(str(folder / f"{number}.png"), picture)
    adding = ("cloud", "dataset", "add", "-c", str(made.config), str(tmp_path / "pictures"), "--scenario", SCENARIO)
    subprocess.run(
        [sys.executable, "-m", "simulations", *adding],
        cwd=REPOSITORY,
        check=True,
        timeout=90,
    )
    made.start()
    yield made
    made.managed.stop()


def start_nodes(centre: Centre, names: tuple[str, ...], backbone: str) -> subprocess.Popen[bytes]:
    arguments = ["--port", str(centre.where["mqtt_port"]), "--scenario", SCENARIO, "--classes", ",".join(CLASSES)]
    arguments += ["--backbone", backbone, "--names", ",".join(names), "--slow-s", str(ANSWERS_WITHIN_S / A_THIRD)]
    return subprocess.Popen(
        [sys.executable, "-m", "simulations.virtual", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def start_again(centre: Centre) -> None:
    """As systemd would: with many connections the old broker frees its port seconds after the centre was killed."""
    for _ in range(5):
        try:
            centre.start()
        except EnvironmentFault as error:
            if "is taken" not in str(error):
                raise
        else:
            return
    pytest.fail("the broker's port is not free again")


def stored(centre: Centre) -> dict[str, Statistics]:
    """Every gateway's statistics, as they lie in the database."""
    file = centre.folder / "data" / "headframe.db"
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10) as connection:
        rows = connection.execute("SELECT client, arrays, meta FROM contributions").fetchall()
    connection.close()
    found = {}
    for client, arrays, meta in rows:
        with np.load(io.BytesIO(arrays)) as parts:
            found[client] = read_packed(tuple(json.loads(meta)["classes"]), dict(parts)).statistics()
    return found


@pytest.mark.slow
def test_a_round_with_a_third_of_its_nodes_and_the_centre_killed_ends_right(centre: Centre) -> None:
    backbone, _ = default_backbone(centre.folder / "data" / "layers")
    nodes = [start_nodes(centre, names, backbone) for names in THIRDS]
    try:
        everyone = sum(map(len, THIRDS))
        online = lambda: sum(bool(state["online"]) for state in centre.get("states"))  # noqa: E731
        wait_for(lambda: online() == everyone, 60 + A_THIRD / 4, "all gateways online", centre.managed)
        run_id = centre.post("rounds", {"author": "test"})["run_id"]
        wait_for(lambda: len(stored(centre)) >= 12, 40, "the first answers", centre.managed, every_s=0.05)
        nodes[0].kill()
        centre.managed.kill()
        before = stored(centre)
        assert 12 <= len(before) < everyone, "killed in the middle"
        start_again(centre)
        done = ("released", "refused by the gate", "failed")
        run = lambda: next(row for row in centre.get("runs") if row["run_id"] == run_id)  # noqa: E731
        wait_for(lambda: run()["status"] in done, 90 + A_THIRD, "the round", centre.managed)
        record = run()
        assert record["status"] == "released", record
        after = stored(centre)
        assert record["record"]["federation"]["resumed"] == len(before)
        assert record["record"]["federation"]["answered"] == len(after)
        assert set(after) >= {*before, *THIRDS[1], *THIRDS[2]}
        for name, statistics in after.items():
            own = statistics_of(made_up(name, SCENARIO, CLASSES, backbone, DIMENSION), CLASSES)
            np.testing.assert_array_equal(statistics.moment, own.moment, err_msg=name)
            np.testing.assert_array_equal(statistics.counts, own.counts)
        total = sum((statistics.total for statistics in after.values()), 0.0)
        by_site = record["record"][SCENARIO]["by_site"]
        assert sum(by_site.values()) == total, "each gateway counts once"
    finally:
        for process in nodes:
            process.terminate()
            process.wait(20)

"""Real processes: a centre with a first release, and gateways that play video."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import pytest

from simulations.belts import still_frames
from simulations.processes import Centre, Managed, make_gateway

REPOSITORY = Path(__file__).resolve().parents[2]
SCENARIO = "foreign-object"


def headframe(*arguments: str) -> str:
    """Run a command to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "simulations", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def first_release() -> Iterator[Path]:
    """Data folder of a centre whose first release was made by the operations team's own commands."""
    with tempfile.TemporaryDirectory(prefix="headframe-e2e-") as name:
        folder = Path(name)
        config = folder / "cloud.toml"
        config.write_text(f"data_dir = {json.dumps(str(folder / 'data'))}\n")
        pictures = folder / "pictures"
        for number, (picture, truth) in enumerate(zip(*still_frames("north-drift", 1, 1, 96), strict=True)):
            label = truth[SCENARIO]
            if label is not None:
                (pictures / label).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(pictures / label / f"{number:03d}.png"), picture)
        headframe("cloud", "dataset", "add", "-c", str(config), str(pictures), "--scenario", SCENARIO)
        headframe("cloud", "train", "-c", str(config))
        yield folder / "data"


@pytest.fixture
def centre(first_release: Path, tmp_path: Path) -> Iterator[Centre]:
    """A running centre of the test's own, with the first release active."""
    made = Centre(tmp_path / "centre", {"learning": {"personal_labels_min": 2, "round_deadline_s": 20.0}})
    shutil.copytree(first_release, made.folder / "data")
    made.start()
    yield made
    made.managed.stop()


@pytest.fixture
def start_gateway(centre: Centre, tmp_path: Path) -> Iterator[Callable[..., Managed]]:
    """Start a gateway with these cameras; its folder is `gateways/<site>`, as the ledger's check expects."""
    started: list[Managed] = []
    root = tmp_path / "root.json"
    headframe("cloud", "keys", "root", "-c", str(centre.config), str(root))

    def start(site: str, cameras: list[Mapping[str, Any]], **settings: Any) -> Managed:
        values = {
            "gateway_id": f"gw-{site}",
            "site_id": site,
            "release_root": root,
            "heartbeat_s": 0.5,
            "broker": {"port": centre.where["mqtt_port"]},
            "selection": {"samples_per_hour": 3600.0, "window_s": 2.0},
            "uplink": {"resend_s": 2.0},
            "cameras": [{"looks_per_s": 10.0, **camera} for camera in cameras],
            **settings,
        }
        managed = make_gateway(tmp_path / "gateways" / site, values)
        managed.start()
        started.append(managed)
        return managed

    yield start
    for managed in started:
        managed.stop()

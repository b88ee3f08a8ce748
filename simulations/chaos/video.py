"""The gateway of a run that sees: the real agent on a generated clip, with a real release, model and installer.

It takes seconds to start, so it belongs into longer runs, beside fed gateways that are back in one.
"""

from pathlib import Path
from typing import Any

import cv2

from cloud.learning.datasets import Item
from cloud.service import Service
from cloud.settings import CloudSettings
from common.backbone import Backbone
from common.errors import EnvironmentFault
from common.files import write_atomically
from common.mqtt import Broker
from common.settings import load_settings
from simulations.belts import BeltCamera, still_frames
from simulations.chaos.boxes import CHEATED, GATEWAY_DISK_BYTES, Gateway
from simulations.chaos.machine import BoxClock, Disk
from simulations.clips import write_clip
from simulations.processes import Centre, Managed, toml_text

SITE, SCENARIO = "south-drift", "foreign-object"
STILLS = 96
CLIP_S = 60.0


def make_first_release(centre: Centre) -> bytes:
    """Train on generated pictures, before the centre runs; returns the root of trust that gateways need."""
    service = Service(load_settings(CloudSettings, centre.config), Broker())
    try:
        items = []
        for number, (picture, truth) in enumerate(zip(*still_frames(SITE, 1, 1, STILLS), strict=True)):
            if (label := truth[SCENARIO]) is not None:
                items.append(Item(centre.folder / "stills" / f"{number}.png", label, SITE))
                write_atomically(items[-1].path, cv2.imencode(".png", picture)[1].tobytes())
        _, path = service.registry.backbone()
        service.catalogue.add("base", SCENARIO, items, Backbone.open(path))
        if not service.trainer.run("chaos: first release").release_id:
            raise EnvironmentFault("the first release did not pass its gate", "Run `headframe demo`: it says more.")
        return service.repository.root()
    finally:
        service.store.close()


def make_video_gateway(folder: Path, gateway_id: str, port: int, root: bytes) -> Gateway:
    """Its clip is written; it does not run yet. It has no journal: the spool's ledger is its witness."""
    disk, clock = Disk(folder / "data", GATEWAY_DISK_BYTES), BoxClock(folder / "clock")
    clip = folder / "clip.mp4"
    write_clip(clip, BeltCamera(SITE, 2, 7), CLIP_S)
    write_atomically(folder / "root.json", root)
    values: dict[str, Any] = {
        "data_dir": folder / "data",
        "gateway_id": gateway_id,
        "site_id": SITE,
        "release_root": folder / "root.json",
        "heartbeat_s": 1.0,
        "broker": {"port": port},
        "uplink": {"resend_s": 3.0},
        "selection": {"samples_per_hour": 7200.0, "window_s": 1.0},
        "cameras": [{"id": "belt", "source": clip, "loop": True, "looks_per_s": 5.0}],
    }
    config = folder / "edge.toml"
    config.write_text(toml_text(values), encoding="utf-8")
    managed = Managed(
        gateway_id,
        ["edge", "run", "--config", str(config)],
        folder / "edge.log",
        module=(*CHEATED, str(clock.file), "simulations"),
    )
    blind = toml_text({**values, "cameras": [{"id": "belt", "source": folder / "no.mp4"}]})
    return Gateway(gateway_id, folder, managed, disk, clock, folder / "journal", blind_config=blind)

"""What the commands of `headframe cloud` share: where the configuration is, and the service without its threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud.settings import CloudSettings
from common.mqtt import Broker
from common.settings import load_settings

if TYPE_CHECKING:
    from cloud.service import Service

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="cloud.toml; deploy/examples/cloud.toml is a start.")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WHY = "`headframe cloud runs` shows why"
"""How a command ends that the gate said no to."""


@contextmanager
def open_service(config: Path) -> Iterator["Service"]:
    """The service without its threads and without the network: store, registry, trainer."""
    from cloud.service import Service

    service = Service(load_settings(CloudSettings, config), Broker())
    try:
        yield service
    finally:
        service.store.close()

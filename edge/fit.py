"""May this release be fetched here at all? Asked of a trusted manifest before its first byte comes."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from common import AGENT_VERSION
from common.errors import EnvironmentFault, OperatorError, TrustError, WireError
from common.manifest import Manifest, release_id
from edge.slots import GoneBack

LAYER_BYTES_MAX: Final = 2 * 1024**3
SPARE_BYTES: Final = 16 * 1024**2
"""Left free on the disk by an install: the spool and the logs go on."""


def check_fit(manifest: Manifest, site_id: str, running: Manifest | None, gone_back: Iterable[GoneBack]) -> None:
    """Compare a release with the one that runs, with those that went back here, and with this agent.

    Raises:
        TrustError: it is older than what runs.
        OperatorError: it went back here, or is no newer than one that did; or it needs a newer agent.
        WireError: a layer is over the bound.
    """
    name = release_id(manifest)
    if running and manifest.sequence <= running.sequence:
        raise TrustError(
            f"release {name} is older than the running {release_id(running)}",
            "A roll-back is published as a new release with the old layers.",
        )
    for gone in gone_back:
        if manifest.sequence <= gone.sequence:
            raise OperatorError(
                f"release {name} is not installed, {gone.release_id} was rolled back here: {gone.reason}",
                "Publish a release with a higher sequence number.",
            )
    if _version(manifest.minimum_agent) > _version(AGENT_VERSION):
        raise OperatorError(
            f"release {name} needs agent {manifest.minimum_agent}, this is {AGENT_VERSION}",
            "Update the agent on this gateway.",
        )
    oversize = [layer for layer in manifest.layers_for(site_id) if layer.size_bytes > LAYER_BYTES_MAX]
    if oversize:
        raise WireError(f"layer {oversize[0].hash[:12]} of {oversize[0].size_bytes} bytes is over the bound")


def check_room(manifest: Manifest, needed_bytes: int, folder: Path) -> None:
    """A download that fills the disk would stop more than itself.

    Raises:
        EnvironmentFault: there is no room for so many bytes; says how many are missing.
    """
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes and needed_bytes + SPARE_BYTES > free_bytes:
        raise EnvironmentFault(
            f"release {release_id(manifest)} needs {_mb(needed_bytes + SPARE_BYTES)} on the disk that holds {folder},"
            f" {_mb(free_bytes)} are free",
            "Free space or move data_dir to a larger disk.",
        )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _version(text: str) -> tuple[int, ...]:
    """`1.2.10` as a tuple; a part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))

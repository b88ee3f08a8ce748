"""How long layers stay. A release without its layers cannot be installed or rolled back to; its row and lineage remain.

Never removed: what is active, on its way, or assigned to a gateway, the whole releases these stand on, what gateways
say they run (a delta starts from it), and what the next release begins with.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.registry import Registry
from cloud.store import Release, Store
from common.errors import OperatorError
from common.manifest import decode_manifest

ENDED: Final = ("superseded", "aborted", "assembled", "retired")
"""Status of releases that nothing waits for; any other is kept."""
RETIRED: Final = "retired"
DELTAS: Final = "deltas"
HASH_DIGITS: Final = 64


@dataclass(frozen=True, slots=True)
class Retained:
    """What was removed, or would be."""

    releases: tuple[str, ...]
    layers: tuple[str, ...]
    size_bytes: int


def retain(registry: Registry, store: Store, keep: int, running: Iterable[str], *, dry: bool = False) -> Retained:
    """Remove the layers of all but the newest releases and those that are needed.

    Args:
        keep: newest releases that stay whatever their status.
        running: releases that gateways say they run.
        dry: only tell.

    Raises:
        OperatorError: `keep` is less than 1.
    """
    if keep < 1:
        raise OperatorError("at least one release is kept", "Give --keep 1 or more.")
    releases = store.releases()
    kept = {release.release_id for release in _kept(releases, keep, {*running, *store.assigned()})}
    gone = [release for release in releases if release.release_id not in kept and release.status != RETIRED]
    wanted = {registry.backbone()[0].hash, *(item.layer.hash for item in registry.detectors())}
    for release in releases:
        if release.release_id in kept:
            wanted |= {layer.hash for layer in decode_manifest(release.manifest).layers()}
    files = [path for path in registry.layer_path("").iterdir() if _is_layer(path) and path.name not in wanted]
    deltas = registry.layer_path(DELTAS)
    files += [
        path
        for path in (deltas.iterdir() if deltas.is_dir() else ())
        if not set(path.name.split(".")) <= wanted  # `base.target`: it serves a gateway only while both are kept
    ]
    size_bytes = sum(path.stat().st_size for path in files)
    names = tuple(sorted(path.name for path in files if _is_layer(path)))
    if not dry:
        for release in gone:  # first, so that nobody is told to run what is about to go
            store.set_release_status(release.release_id, RETIRED)
        for path in files:
            path.unlink(missing_ok=True)
    return Retained(tuple(release.release_id for release in gone), names, size_bytes)


def _kept(releases: list[Release], keep: int, needed: set[str]) -> list[Release]:
    """Newest first; with the bases on which what is kept stands."""
    kept = [
        release
        for number, release in enumerate(releases)
        if number < keep or release.status not in ENDED or release.release_id in needed
    ]
    bases = {release.base for release in kept if release.base}
    return [*kept, *(release for release in releases if release.release_id in bases and release not in kept)]


def _is_layer(path: Path) -> bool:
    return path.is_file() and len(path.name) == HASH_DIGITS and path.name.isalnum()

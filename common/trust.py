"""Who may sign what: the roles of The Update Framework (TUF) as this project uses them.

Decides the names of roles and targets, and which roles have to stand behind a release. Knows no key and no signature:
the centre signs (`cloud.trust`), the gateway verifies (`common.metadata`), both by these names.

A release is whole when the top role `targets` lists it. A release that changes only parts of one that is whole may be
listed by the roles of these parts alone: so a scenario's head goes out with the scenario's key, and a stolen one
reaches that scenario and nothing beside it.
"""

import hashlib
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import msgspec

from common.errors import TrustError
from common.manifest import Manifest, release_id

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
ASSIGNMENTS: Final = "assignments"
"""Says which gateway runs which release; can choose only among releases that other roles have signed."""
BACKBONE: Final = "backbone"
DETECTORS: Final = "detectors"

SIGNED_AT: Final = "headframe-signed-at"
"""Field of a timestamp: seconds since 1970. No honest clock is earlier than the newest one that a gateway has seen."""

DEVELOPMENT: Final = "headframe-development"
"""Field of a root whose keys all lie on the centre's own machine."""

BUNDLE_BYTES_MAX: Final = 512 * 1024  # metadata beside a manifest; 40 scenarios and ten rotations are about 60 kB
BUNDLE_FILES_MAX: Final = 256
ROOTS_MAX: Final = 64  # rotations that a gateway can sleep through
DELEGATIONS_MAX: Final = 128
ROOT_BYTES_MAX: Final = 16 * 1024
TIMESTAMP_BYTES_MAX: Final = 4 * 1024
SNAPSHOT_BYTES_MAX: Final = 64 * 1024
TARGETS_BYTES_MAX: Final = 256 * 1024
ASSIGNMENT_BYTES_MAX: Final = 4 * 1024
MANIFEST_BYTES_MAX: Final = 4 * 1024 * 1024  # a personal head for each of 10,000 sites

AHEAD_MAX: Final = 10_000
"""Releases that may follow one which targets has listed; without a bound a stolen key of a part could use up all
sequence numbers, and no honest release would be newer again."""

_PARTS: Final = ("backbone", "minimum_agent", "variants", "detectors", "scenarios")
_FREE: Final = ("sequence", "created_at_ns", "expires_at_ns", "note", "golden")
"""What any part's release says anew: `golden` is what it is tested with, it can only be refused by it."""


def scenario_role(name: str) -> str:
    """The role that stands behind a scenario's heads."""
    return f"scenario-{quote(name, safe='')}"


def release_path(release: str) -> str:
    """Target under which `targets` lists a whole release."""
    return f"releases/{release}"


def part_path(role: str, release: str) -> str:
    """Target under which the role of a part lists a release that changes this part."""
    return f"parts/{role}/{release}"


def paths_of(role: str) -> str:
    """The pattern of targets that is delegated to a role."""
    return f"{ASSIGNMENTS}/*" if role == ASSIGNMENTS else f"parts/{role}/*"


def assignment_path(gateway_id: str) -> str:
    """The one target of an assignment."""
    return f"{ASSIGNMENTS}/{gateway_id}"


def roles_behind(base: Manifest, manifest: Manifest) -> tuple[str, ...]:
    """The roles that must all list `manifest` when `targets` has listed `base` only.

    Raises:
        TrustError: it differs in more than parts that have a role: only `targets` can list it.
    """
    if [item.name for item in base.scenarios] != [item.name for item in manifest.scenarios]:
        raise TrustError(
            f"release {release_id(manifest)} has other scenarios than {release_id(base)}, on which it is based",
            "A new scenario is signed by the targets role: `headframe cloud keys stage`.",
        )
    if not 0 <= manifest.sequence - base.sequence <= AHEAD_MAX:
        raise TrustError(f"release {release_id(manifest)} is not within {AHEAD_MAX} of {release_id(base)}, its base")
    kept = {field: getattr(base, field) for field in (*_FREE, *_PARTS)}
    if msgspec.structs.replace(manifest, **kept) != base:  # a field that is younger than this agent, perhaps
        raise TrustError(f"release {release_id(manifest)} differs from {release_id(base)} in more than its parts")
    roles = []
    same_core = (base.backbone, base.minimum_agent) == (manifest.backbone, manifest.minimum_agent)
    if not same_core or not set(manifest.variants) <= set(base.variants):  # leaving a variant out is no new code
        roles.append(BACKBONE)
    if base.detectors != manifest.detectors:
        roles.append(DETECTORS)
    before = {item.name: item for item in base.scenarios}
    roles += [scenario_role(item.name) for item in manifest.scenarios if item != before[item.name]]
    return tuple(roles) or tuple(scenario_role(item.name) for item in manifest.scenarios)


def part_roles(manifest: Manifest) -> tuple[str, ...]:
    """The roles of all parts of a release."""
    return (BACKBONE, DETECTORS, *(scenario_role(item.name) for item in manifest.scenarios))


def digest(manifest: bytes) -> bytes:
    """By what a gateway remembers a manifest."""
    return hashlib.sha256(manifest).digest()


def moment(at_ns: int) -> datetime:
    """A time as TUF writes it: UTC, whole seconds."""
    return datetime.fromtimestamp(at_ns // 10**9, UTC)

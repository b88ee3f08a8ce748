"""What the store returns: plain values, detached from any session."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.messages import Box, Prediction, Scores


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample without its picture and embedding, with its newest labels by scenario."""

    sample_id: bytes
    gateway_id: str
    site_id: str
    camera_id: str
    captured_at_ns: int
    received_at_ns: int
    release_id: str
    backbone: str
    width_px: int
    height_px: int
    predictions: tuple[Prediction, ...]
    scores: Scores
    reason: str
    pixel_path: str
    boxes: tuple[Box, ...] = ()
    variant: str = ""
    epoch: str = ""
    sequence: int = 0
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Labelled samples of one scenario on one backbone, row by row; embeddings float32 (n, d)."""

    sample_ids: list[bytes]
    gateways: list[str]
    sites: list[str]
    embeddings: NDArray[np.float32]
    labels: list[str]


SUM = "sum/"
"""Begin of the name under which a masked sum is kept; no gateway id has a slash. `members` of its meta are in it."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """A gateway's statistics, or those of several in one masked sum."""

    client: str
    arrays: dict[str, NDArray[np.generic]]
    meta: dict[str, Any]
    at_ns: int

    @property
    def members(self) -> tuple[str, ...]:
        """The gateways whose statistics these are."""
        return tuple(self.meta.get("members", (self.client,)))


QUEUED: Final = "queued"
RUNNING: Final = "running"
RELEASED: Final = "released"
REFUSED: Final = "refused by the gate"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """A round, or another training run, and its record."""

    run_id: str
    started_ns: int
    finished_ns: int | None
    status: str
    """`QUEUED` or `RUNNING`, and then how it ended: `RELEASED`, `REFUSED` or `FAILED`"""
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Release:
    """A signed release and what its gate said."""

    release_id: str
    sequence: int
    manifest: bytes
    signature: bytes
    gate: dict[str, Any]
    status: str
    """active, superseded, or staged: it waits for offline keys."""
    created_at_ns: int
    base: str = ""
    """The whole release of which it changes parts; empty when it was signed whole."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a gateway was told to run, signed."""

    gateway_id: str
    release_id: str
    sequence: int
    renew_at_ns: int
    signed: bytes


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """Where a layer comes from."""

    layer: str
    kind: str
    """backbone, variant, head or detector."""
    scenario: str
    parent: str
    """The layer it was made from: a head's predecessor, a variant's float backbone; empty: none."""
    samples: str
    """Name of the set of samples that went into it; empty: none, or not known."""
    record: dict[str, Any]
    """data_version, datasets, code, parameters, evaluation, licence."""
    at_ns: int


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A version of a scenario's dataset, without its content."""

    scenario: str
    number: int
    hash: str
    at_ns: int
    summary: dict[str, Any]
    conflicts: list[dict[str, Any]]
    """Open ones when it was last looked at, strongest first, at most as many as a console shows."""


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """A line of the rollouts' ledger."""

    number: int
    rollout_id: str
    kind: str
    actor: str
    at_ns: int
    line: bytes
    """JSON of `cloud.rollout.entries`."""
    why: str = ""
    """Of an order, for the audit log; it stands in the line too."""

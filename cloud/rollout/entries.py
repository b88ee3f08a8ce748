"""The lines of the ledger: everything that was decided about a rollout, by whom and why. Pure.

The ledger is only ever added to, and a rollout is nothing but the sum of its lines (`cloud.rollout.engine.Rollouts`).
What can be read from the gateways' reports again (frames, latency) is not in it; what cannot (who was told when, what
ran there before, what came of it) is.
"""

from typing import Any

import msgspec

from cloud.rollout.gates import Baseline, Verdict
from cloud.rollout.plan import Plan


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What all lines have."""

    rollout_id: str
    at_ns: int
    actor: str = "engine"
    why: str = ""


class Started(Line, frozen=True, tag="started"):
    """A release is to reach the fleet. It begins at once, or waits while another touches the same parts."""

    release_id: str
    parts: tuple[str, ...]
    """What it changes: `scenario:belt`, `detectors`, or `*` for everything (another backbone)."""
    plan: Plan
    fleet: int
    """Gateways known then."""


class Begun(Line, frozen=True, tag="begun"):
    """One that waited goes on; `before` is the release that the fleet ran then: the way back."""

    before: str


class Superseded(Line, frozen=True, tag="superseded"):
    """One that waited will never begin: a newer one for the same parts waits instead."""


class Told(Line, frozen=True, tag="told"):
    """These gateways are to run it from now on."""

    gateways: dict[str, Baseline | None]


class Settled(Line, frozen=True, tag="settled"):
    """What came of it on gateways."""

    healthy: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    refused: dict[str, str] = {}
    silent: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()


class Filled(Line, frozen=True, tag="filled"):
    """A wave has its gateways; it is watched from now on."""

    wave: int


class Opened(Line, frozen=True, tag="opened"):
    """The wave before has passed its gates."""

    wave: int
    verdicts: tuple[Verdict, ...] = ()


class Paused(Line, frozen=True, tag="paused"):
    """Nobody else is told until it is resumed."""


class Resumed(Line, frozen=True, tag="resumed"):
    """It goes on."""


class Aborted(Line, frozen=True, tag="aborted"):
    """Stopped by a gate or a person: every gateway goes back to what it ran."""

    verdicts: tuple[Verdict, ...] = ()


class Completed(Line, frozen=True, tag="completed"):
    """The fleet runs it: `release_id` is active from now on (it has the changes of rollouts that ended meanwhile)."""

    release_id: str
    verdicts: tuple[Verdict, ...] = ()


class RolledBack(Line, frozen=True, tag="rolled-back"):
    """Taken back by a person after it had completed; `release_id`, without its changes, is active from now on."""

    release_id: str


class Replaced(Line, frozen=True, tag="replaced"):
    """A person put the whole fleet onto a release at once: every rollout has ended."""

    release_id: str


Entry = (
    Replaced
    | Started
    | Begun
    | Superseded
    | Told
    | Settled
    | Filled
    | Opened
    | Paused
    | Resumed
    | Aborted
    | Completed
    | RolledBack
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """A line as JSON."""
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> Entry:
    """The line of its JSON."""
    entry: Entry = _decoder.decode(data)
    return entry

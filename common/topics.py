"""MQTT topics. Nothing beyond MQTT 3.1.1 is used.

`headframe/up/<shard>/<gateway>/<kind>`: gateway to centre. The shard (two hex digits of a hash of the gateway id)
lets several ingest workers share the fleet by subscription, on any broker.
`headframe/down/<gateway>/<kind>`: centre to one gateway.
`headframe/release/<hash>`: centre to whoever needs it: a piece of a release, named by its own hash (`common.parcels`).

A broker's ACL ties `<gateway>` to the client certificate: a gateway writes `headframe/up/+/<own id>/+` and reads
`headframe/down/<own id>/+` and `headframe/release/+`, nothing else. Only the centre writes the last two.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Final

from common.errors import WireError
from common.ids import check_name, is_layer_hash

SHARDS: Final = 256
UP_KINDS: Final = ("sample", "chunk", "state", "fetch", "flower", "event", "ledger", "renew", "offer")
DOWN_KINDS: Final = ("receipt", "desired", "layer", "shelved", "flower", "certificate", "want")
RELEASE: Final = "headframe/release/"


@functools.lru_cache(maxsize=16_384)  # asked for every message
def shard(gateway_id: str) -> int:
    """Stable shard of a gateway, 0..255."""
    return hashlib.blake2b(gateway_id.encode(), digest_size=1).digest()[0]


def up(gateway_id: str, kind: str) -> str:
    """Topic on which `gateway_id` publishes `kind`."""
    if kind not in UP_KINDS:
        raise ValueError(f"unknown up kind {kind!r}")
    return f"headframe/up/{shard(gateway_id):02x}/{gateway_id}/{kind}"


def down(gateway_id: str, kind: str) -> str:
    """Topic on which the centre publishes `kind` to `gateway_id`."""
    if kind not in DOWN_KINDS:
        raise ValueError(f"unknown down kind {kind!r}")
    return f"headframe/down/{gateway_id}/{kind}"


def up_filter(shard_number: int | None = None, kind: str = "+") -> str:
    """Subscription of the centre: one shard or all of them, one kind or every one."""
    return f"headframe/up/{'+' if shard_number is None else f'{shard_number:02x}'}/+/{kind}"


def up_filters(shards: range, kinds: Sequence[str]) -> list[str]:
    """Subscriptions for some kinds of these shards."""
    numbers = [None] if len(shards) == SHARDS else list(shards)
    return [up_filter(number, kind) for number in numbers for kind in kinds]


def down_filter(gateway_id: str) -> str:
    """Subscription of a gateway."""
    return f"headframe/down/{gateway_id}/+"


def release(piece: str) -> str:
    """Topic of a piece of a release, which is also the filter of whoever needs it."""
    return f"{RELEASE}{piece}"


def parse_release(topic: str) -> str:
    """The name of the piece that a topic carries; empty: it carries none."""
    name = topic.removeprefix(RELEASE)
    return name if topic.startswith(RELEASE) and is_layer_hash(name) else ""


@functools.lru_cache(maxsize=65_536)  # the same topics come again and again
def parse_up(topic: str) -> tuple[str, str]:
    """Split an up topic into (gateway_id, kind).

    Raises:
        WireError: not an up topic, unknown kind, or a shard that is not the gateway's own.
    """
    parts = topic.split("/")
    if len(parts) != 5 or parts[:2] != ["headframe", "up"] or parts[4] not in UP_KINDS:
        raise WireError(f"{topic!r} is not an up topic")
    gateway_id = parts[3]
    if parts[2] != f"{shard(gateway_id):02x}":
        raise WireError(f"{topic!r} names a shard that is not the gateway's own")
    check_name("gateway", gateway_id)
    return gateway_id, parts[4]

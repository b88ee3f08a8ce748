"""What an attacker who holds no key can do with what was signed honestly: replay, freeze, mix, damage, and flood."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec

from common import trust
from common.messages import Desired
from simulations.bench._forgery import SERVING, Forger, Theft
from simulations.bench._yard import SCENARIOS, Centre

DAY_NS: Final = 24 * 3600 * 10**9
FROZEN_DAYS: Final = (31, 45, 61, 90, 200, 401, 1101)
"""Beyond the expiry of the timestamp, of assignment and snapshot, of targets and manifest, of the root."""
Spoil = Callable[[bytes, random.Random], bytes]
AUTHORITY: Final = Theft("everything", (*SERVING, "root", "targets", *(f"scenario-{name}" for name in SCENARIOS)))


@dataclass
class History:
    """All that was ever on the wire, to this gateway and to another."""

    mine: list[Desired] = field(default_factory=list)
    others: list[Desired] = field(default_factory=list)


def rollbacks(history: History, honest: Desired, rng: random.Random) -> Iterator[tuple[str, Desired]]:
    """An earlier message, or the new one with something earlier in it."""
    old = rng.choice(history.mine[:-1])
    yield "an earlier message", old
    yield "an earlier assignment", msgspec.structs.replace(honest, assignment=old.assignment)
    yield "an earlier manifest", msgspec.structs.replace(honest, manifest=old.manifest, base=old.base)
    for role in ("timestamp", "snapshot", "targets", *(trust.scenario_role(name) for name in SCENARIOS)):
        mixed = _with_role_of(honest, old, role)
        if mixed.metadata != honest.metadata:
            yield f"an earlier {role}", mixed


def mixtures(history: History, honest: Desired, rng: random.Random) -> Iterator[tuple[str, Desired]]:
    """Parts of different messages, each of which was signed."""
    while True:
        sources = [rng.choice([*history.mine, *history.others, honest, honest]) for _ in range(4)]
        manifest, base, metadata, assignment = sources
        made = Desired(
            manifest=manifest.manifest, base=base.base, metadata=metadata.metadata, assignment=assignment.assignment
        )
        if made not in (*history.mine, honest) and made.manifest != history.mine[-1].manifest:
            yield "parts of different messages", made


def assignments(centre: Centre, history: History, honest: Desired, rng: random.Random) -> Iterator[tuple[str, Desired]]:
    """Words that were meant for another gateway, or were never given."""
    nobody = Forger(centre, Theft("no key", ()), honest, rng.randrange(2**31))
    other = centre.desired(centre.manifests[-1], f"gw-{rng.randrange(2, 1000)}")
    yield "of another gateway", msgspec.structs.replace(honest, assignment=other.assignment)
    yield "the whole message to another gateway", other
    yield "none", msgspec.structs.replace(honest, assignment=b"")
    yield "of an earlier release", msgspec.structs.replace(honest, assignment=rng.choice(history.mine[:-1]).assignment)
    yield "signed with an own key", msgspec.structs.replace(honest, assignment=nobody.assignment(honest.manifest))
    role = rng.choice(list(honest.metadata))
    yield "other metadata in its place", msgspec.structs.replace(honest, assignment=honest.metadata[role])


def floods(honest: Desired, rng: random.Random) -> Iterator[tuple[str, Desired]]:
    """More than anybody should read."""

    def extra(files: dict[str, bytes]) -> Desired:
        return msgspec.structs.replace(honest, metadata=honest.metadata | files)

    size = rng.choice([2, 4, 16]) * trust.BUNDLE_BYTES_MAX
    name = rng.choice(list(honest.metadata))
    yield "a file without end", extra({name: honest.metadata[name] + b" " * size})
    yield "files without end", extra({f"{number}.root.json": b"{}" for number in range(2, 2 + trust.BUNDLE_FILES_MAX)})
    yield (
        "a timestamp over its bound",
        extra(
            {
                "timestamp.json": honest.metadata["timestamp.json"]
                + b" " * (trust.TIMESTAMP_BYTES_MAX + rng.randrange(99))
            }
        ),
    )
    yield (
        "a manifest without end",
        msgspec.structs.replace(
            honest, manifest=honest.manifest + b"\0" * (trust.MANIFEST_BYTES_MAX + rng.randrange(99))
        ),
    )
    yield (
        "an assignment without end",
        msgspec.structs.replace(honest, assignment=honest.assignment + b" " * trust.ASSIGNMENT_BYTES_MAX),
    )
    depth = rng.randrange(1000, 100_000)
    yield "nested without end", extra({"timestamp.json": (b'{"a":' * depth)[: trust.TIMESTAMP_BYTES_MAX]})
    yield (
        "an assignment nested without end",
        msgspec.structs.replace(honest, assignment=(b"[" * depth)[: trust.ASSIGNMENT_BYTES_MAX]),
    )
    yield "a root over its bound", extra({"2.root.json": b"[" * (trust.ROOT_BYTES_MAX + 1)})


def thresholds(centre: Centre, honest: Desired, rng: random.Random) -> Iterator[tuple[str, Desired]]:
    """Metadata by somebody who has every key, with too few signatures left on it: as if keys were missing."""
    for role in (trust.ROOT, trust.TARGETS):
        for what, spoil in _SPOILS.items():
            forger = Forger(centre, AUTHORITY, honest, rng.randrange(2**31))
            forger.spoil[role] = partial(_spoilt, spoil, rng)
            if role == trust.ROOT:
                forger.stolen = [*forger.steal("root"), *forger.stolen]
            yield f"{role}: {what}", forger.new_root() if role == trust.ROOT else forger.whole()


def mutations(honest: Desired, rng: random.Random) -> Iterator[tuple[str, Desired]]:
    """The new message with something in it changed at random."""
    kinds: Sequence[Callable[[Desired, random.Random], Desired]] = (_flip, _cut, _lose, _swap, _rewrite, _rewrite)
    while True:
        change = rng.choice(kinds)
        made = change(honest, rng)
        if made != honest:
            yield change.__name__.strip("_"), made


def _flip(honest: Desired, rng: random.Random) -> Desired:
    return _edit(honest, rng, lambda data: _flip_bit(data, rng))


def _cut(honest: Desired, rng: random.Random) -> Desired:
    return _edit(honest, rng, lambda data: data[: rng.randrange(len(data))] if data else data)


def _lose(honest: Desired, rng: random.Random) -> Desired:
    gone = rng.choice(list(honest.metadata))
    return msgspec.structs.replace(honest, metadata={k: v for k, v in honest.metadata.items() if k != gone})


def _swap(honest: Desired, rng: random.Random) -> Desired:
    one, other = rng.sample(list(honest.metadata), 2)
    files = honest.metadata | {one: honest.metadata[other], other: honest.metadata[one]}
    return msgspec.structs.replace(honest, metadata=files)


def _rewrite(honest: Desired, rng: random.Random) -> Desired:
    """One value somewhere in the JSON."""

    def change(data: bytes) -> bytes:
        try:
            document = json.loads(data)
        except ValueError:
            return _flip_bit(data, rng)
        _change_leaf(document, rng)
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    return _edit(honest, rng, change)


def _edit(honest: Desired, rng: random.Random, change: Callable[[bytes], bytes]) -> Desired:
    name = rng.choice([*honest.metadata, "manifest", "assignment", *(["base"] if honest.base else [])])
    if name in honest.metadata:
        return msgspec.structs.replace(honest, metadata=honest.metadata | {name: change(honest.metadata[name])})
    return msgspec.structs.replace(honest, **{name: change(getattr(honest, name))})


def _change_leaf(document: Any, rng: random.Random) -> None:
    """Replace, drop or add one value on a random way down."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice([None, -1, 0, 1, 2**63, 2**200, "", "x", [], {}, True, 1.5, "2999-01-01T00:00:00Z"])
        return


def _flip_bit(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _with_role_of(new: Desired, old: Desired, role: str) -> Desired:
    """The new message with a role's files of the old one under the names of the new."""

    def names(message: Desired) -> list[str]:
        return [name for name in message.metadata if name == f"{role}.json" or name.endswith(f".{role}.json")]

    if not names(new) or not names(old):
        return new
    files = new.metadata | {names(new)[-1]: old.metadata[names(old)[-1]]}
    return msgspec.structs.replace(new, metadata=files)


def _signatures(data: bytes, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> bytes:
    document = json.loads(data)
    document["signatures"] = change(document["signatures"])
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _spoilt(spoil: Spoil, rng: random.Random, data: bytes) -> bytes:
    return spoil(data, rng)


def _one(items: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    return [rng.choice(items)]


def _renamed(items: list[dict[str, str]], rng: random.Random) -> list[dict[str, str]]:
    """One key's signature under the names of all."""
    signature = rng.choice(items)["sig"]
    return [item | {"sig": signature} for item in items]


_SPOILS: Final[dict[str, Spoil]] = {
    "no signature": lambda data, _rng: _signatures(data, lambda _items: []),
    "one signature": lambda data, rng: _signatures(data, lambda items: _one(items, rng)),
    "one signature, twice": lambda data, rng: _signatures(data, lambda items: _one(items, rng) * 2),
    "one signature under every name": lambda data, rng: _signatures(data, lambda items: _renamed(items, rng)),
    "signatures of before a change": lambda data, _rng: data.replace(b'"version":', b'"x-note":"","version":', 1),
}

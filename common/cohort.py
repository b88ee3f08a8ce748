"""The records of a secure sum: four exchanges of a cohort with the centre between. Both sides use this.

`keys` (public keys) → `shares` (of every member's two secrets, sealed for each other member) → `masked` (the vector) →
`reveal` (shares of the own masks of those who answered, of the keys of those who fell silent). Each is a Flower message
of type `train.<step>` with a ConfigRecord `step` that holds one of the structs below; a vector is an ArrayRecord, and
so are the projections of the scenarios. The cryptography is in `common.masking`.
"""

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec
import numpy as np

from common.errors import WireError
from common.flower import Array, ArrayRecord, ConfigRecord, RecordDict
from common.masking import SEED_BYTES, Words
from common.projection import Projection, size_of

KEYS: Final = "train.keys"
SHARES: Final = "train.shares"
MASKED: Final = "train.masked"
REVEAL: Final = "train.reveal"
COHORT_MAX: Final = 256
"""Members: each makes a mask and a share for every other."""

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Secret = Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]
"""A share, a commitment, the name of a session."""
Sealed = Annotated[bytes, msgspec.Meta(max_length=64)]
"""Two shares and a tag."""


class KeysAsked(msgspec.Struct, frozen=True):
    """Will you take part?"""

    session: Secret
    """Random; names the sum. Nothing of one session is used in another."""


class KeysGiven(msgspec.Struct, frozen=True):
    """Two public keys: one masks, one unseals. Of the second nobody ever gets a share."""

    mask_key: Key
    seal_key: Key


class SharesAsked(msgspec.Struct, frozen=True):
    """Your cohort; share out your secrets."""

    session: Secret
    members: dict[int, KeysGiven]
    """Node id -> its keys; the places of shares are those of the sorted ids, from 1."""
    threshold: int
    """So many members must answer, and so many shares open a secret."""


class SharesGiven(msgspec.Struct, frozen=True):
    """Sealed shares for each other member, and by what the own mask is known again."""

    sealed: dict[int, Sealed]
    own_mask: Secret


class MaskedAsked(msgspec.Struct, frozen=True):
    """What was sealed for you by those who still take part; give your vector."""

    session: Secret
    sealed: dict[int, Sealed]
    """Node id of each *other* member of the sum -> what it sealed for this one."""
    backbone: str
    scenarios: dict[str, tuple[str, ...]]
    """scenario -> classes; the vector describes them in the order of their names."""
    labels: dict[str, dict[str, str]]
    """scenario -> sample id in hex -> label: samples the centre holds, and counts itself."""
    class_samples_min: int = 0
    multipliers: dict[str, float] = {}
    """scenario -> noise of the sum (`common.projection.noise`); a scenario that is not here has none."""


class RevealAsked(msgspec.Struct, frozen=True):
    """Who answered, and who was asked for a vector and fell silent."""

    session: Secret
    answered: tuple[int, ...]
    silent: tuple[int, ...]


class Revealed(msgspec.Struct, frozen=True):
    """Shares: of the own mask of each that answered, of the mask key of each that did not."""

    own_masks: dict[int, Secret]
    mask_keys: dict[int, Secret]


T = TypeVar("T", bound=msgspec.Struct)


def pack_step(step: msgspec.Struct) -> RecordDict:
    """A message's content."""
    return RecordDict({"step": ConfigRecord({"step": msgspec.msgpack.encode(step)})})


def read_step(content: RecordDict, kind: type[T]) -> T:
    """Raises:
    WireError: not such a step.
    """
    try:
        data = content["step"]["step"]
        if not isinstance(data, bytes):
            raise WireError("a step of a secure sum is not bytes")
        return msgspec.msgpack.decode(data, type=kind)
    except (KeyError, TypeError, msgspec.DecodeError) as error:
        raise WireError(f"not a step of a secure sum: {error}") from error


def put_vector(content: RecordDict, words: Words) -> None:
    """Add a masked vector."""
    content["vector"] = ArrayRecord({"words": Array(words)})


def read_vector(content: RecordDict, size: int) -> Words:
    """Raises:
    WireError: none, or not of this size.
    """
    try:
        words = content["vector"]["words"].numpy()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"not a masked vector: {error!r}") from error
    if words.dtype != np.uint64 or words.shape != (size,):
        raise WireError(f"a masked vector is {words.dtype} {words.shape}, not uint64 {(size,)}")
    found: Words = words
    return found


def pack_projections(projections: Mapping[str, Projection]) -> dict[str, ArrayRecord]:
    """The records of a request that hold the projections; the same objects go to every member.

    Directions are float16: both sides compute with the rounded ones.
    """
    return {
        f"projection/{scenario}": ArrayRecord(
            {
                "origin": Array(projection.origin.astype(np.float32)),
                "directions": Array(projection.directions.astype(np.float16)),
                "length": Array(np.array([projection.length])),
            }
        )
        for scenario, projection in projections.items()
    }


def read_projection(content: RecordDict, scenario: str) -> Projection:
    """Raises:
    WireError: there is none of this scenario, or it is out of bounds.
    """
    try:
        arrays = {name: array.numpy() for name, array in content[f"projection/{scenario}"].items()}
        origin, directions, length = (np.asarray(arrays[n], np.float64) for n in ("origin", "directions", "length"))
        return Projection(origin, directions, float(length[0]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WireError(f"no projection of scenario {scenario!r}: {error!r}") from error


def vector_size(scenarios: Mapping[str, tuple[str, ...]], projections: Mapping[str, Projection]) -> int:
    """Words of a member's vector."""
    return sum(size_of(len(classes), projections[name].width) for name, classes in scenarios.items())

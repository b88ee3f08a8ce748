"""Large payloads in parts: split, and join within bounds. No I/O; time comes as an argument.

A transfer is named by the hash of the whole payload, so a part that arrives twice or out of order is harmless and a
re-sent payload continues the transfer that was begun.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.codec import PAYLOAD_BYTES_MAX
from common.errors import BoundError, WireError
from common.messages import Chunk

CHUNK_BYTES = 256 * 1024
CHUNKS_MAX = 4096  # of one transfer
MISSING_MAX = 256  # told to the sender at once
TRANSFERS_MAX = 64  # unfinished ones of one sender


def transfer_id(payload: bytes) -> bytes:
    """BLAKE2b-128 over the whole payload."""
    return hashlib.blake2b(payload, digest_size=16, person=b"headframe-chunks").digest()


def split(payload: bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut `payload` into chunks of at most `chunk_bytes`; an empty payload is one empty chunk."""
    name = transfer_id(payload)
    for index in range(count_of(len(payload), chunk_bytes)):
        yield part(payload, index, name, chunk_bytes)


def count_of(total_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """How many chunks a payload of this size makes."""
    return max(1, -(-total_bytes // chunk_bytes))


def part(payload: bytes, index: int, name: bytes, chunk_bytes: int = CHUNK_BYTES) -> Chunk:
    """One chunk of the transfer `name` (`transfer_id` of the payload)."""
    count = count_of(len(payload), chunk_bytes)
    data = payload[index * chunk_bytes : (index + 1) * chunk_bytes]
    return Chunk(transfer_id=name, index=index, count=count, total_bytes=len(payload), data=data)


@dataclass
class _Transfer:
    count: int
    total_bytes: int
    parts: dict[int, bytes] = field(default_factory=dict)


class Joiner:
    """Joins chunks of one sender, holding at most `pending_bytes_max` of unfinished transfers (oldest dropped first).

    A dropped transfer is not lost: the sender still holds the payload and sends it again.
    """

    def __init__(self, pending_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._pending_bytes_max = pending_bytes_max
        self._transfers: OrderedDict[bytes, _Transfer] = OrderedDict()
        self.pending_bytes = 0

    def add(self, chunk: Chunk) -> bytes | None:
        """Take one chunk; return the whole payload when it was the last one missing.

        Raises:
            BoundError: the whole would be larger than the bound.
            WireError: the chunk contradicts itself, its transfer or a bound, or the payload's hash does not fit. The
                transfer is dropped.
        """
        if chunk.total_bytes > self._pending_bytes_max:
            raise BoundError(f"a transfer of {chunk.total_bytes} bytes is out of bounds")
        if not 0 <= chunk.index < chunk.count or chunk.total_bytes < 0:
            raise WireError(f"chunk {chunk.index} of {chunk.count}, {chunk.total_bytes} bytes, is out of bounds")
        if chunk.count > CHUNKS_MAX or (chunk.total_bytes and not chunk.data):  # else empty chunks cost memory for free
            raise WireError(f"a transfer in {chunk.count} chunks, or with an empty one, is out of bounds")
        transfer = self._transfers.setdefault(chunk.transfer_id, _Transfer(chunk.count, chunk.total_bytes))
        self._transfers.move_to_end(chunk.transfer_id)
        if (transfer.count, transfer.total_bytes) != (chunk.count, chunk.total_bytes):
            self._drop(chunk.transfer_id)
            raise WireError("chunk contradicts the other chunks of its transfer")
        if chunk.index not in transfer.parts:
            transfer.parts[chunk.index] = chunk.data
            self.pending_bytes += len(chunk.data)
        if sum(map(len, transfer.parts.values())) > transfer.total_bytes:
            self._drop(chunk.transfer_id)
            raise WireError(f"chunks hold more than the declared {chunk.total_bytes} bytes")
        if len(transfer.parts) == transfer.count:
            return self._finish(chunk.transfer_id)
        while self.pending_bytes > self._pending_bytes_max or len(self._transfers) > TRANSFERS_MAX:
            self._drop(next(iter(self._transfers)))
        return None

    def missing(self, chunk: Chunk) -> tuple[int, ...]:
        """Indexes that the transfer of this chunk still lacks (the first `MISSING_MAX`); empty when it is unknown."""
        transfer = self._transfers.get(chunk.transfer_id)
        if transfer is None:
            return ()
        return tuple(index for index in range(transfer.count) if index not in transfer.parts)[:MISSING_MAX]

    def has(self, chunk: Chunk) -> bool:
        """Whether this chunk is here already."""
        transfer = self._transfers.get(chunk.transfer_id)
        return transfer is not None and chunk.index in transfer.parts

    def _finish(self, name: bytes) -> bytes:
        transfer = self._transfers[name]
        payload = b"".join(transfer.parts[index] for index in range(transfer.count))
        self._drop(name)
        if transfer_id(payload) != name:
            raise WireError("joined chunks do not match the hash of the whole")
        return payload

    def _drop(self, name: bytes) -> None:
        transfer = self._transfers.pop(name)
        self.pending_bytes -= sum(map(len, transfer.parts.values()))

"""Weight deltas: a layer file as the difference to one that the gateway holds. Pure: bytes in, bytes out.

The centre lists the tensors that both files hold (it knows ONNX); the gateway needs no ONNX to rebuild. Tensors travel
in one of these ways (`common.differences`), the rest of the file as a literal compressed against the rest of the base:

- *same*: the base has the very bytes.
- *stepped*: `target = base + code * step`, one step a tensor. The centre made the weights so, before it judged and
  signed them (`cloud.learning.snapping`). A step has three significant bits, so its product with a small integer is
  exact in float32, the sum is the only rounding, and every IEEE machine rebuilds the same bits, with fused
  multiply-add or without.
- *scaled*: `target = base * (1 + code * step)`: the scales of an int8 model, whose ratios to each other matter.
- *exact*: any other float32 tensor. Floats in the order of the reals as integers, subtracted, zigzag, byte planes.
- *whole*: int32, the biases of an int8 model: as exact, but integers they are already.
- *coded*: one byte a value, the weights of an int8 model: a bit for each that says whether it changed, and by how much.

A delta is checked like anything from a peer: sizes are declared and bounded before anything is decompressed, and the
caller compares the hash of what comes out with the one that was signed. A kind that an agent does not know is refused
like damage, and the whole file is fetched.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from common.differences import (
    STEP_MAX,
    STEP_MIN,
    find_changed,
    find_changes,
    float_differences,
    move_by,
    move_bytes,
    move_floats,
    move_wholes,
    nearest_moves,
    nearest_ratios,
    planes,
    scale_by,
    unplanes,
    unzigzag,
    whole_differences,
    zigzag,
)
from common.errors import WireError
from common.weights import FLOAT, Tensor

VERSION: Final = 1
LEVEL: Final = 19  # a delta is made once and sent to thousands
PIECES_MAX: Final = 100_000
WINDOW_BYTES_MAX: Final = 1 << 27  # 128 MiB: what a gateway must be able to hold while it decompresses
OVERHEAD_BYTES: Final = 1 << 20  # the table of tensors
SAME: Final = 0
STEPPED: Final = 1
EXACT: Final = 2
WHOLE: Final = 3
CODED: Final = 4
SCALED: Final = 5
ITEM_BYTES: Final = {SAME: 4, STEPPED: 4, EXACT: 4, WHOLE: 4, CODED: 1, SCALED: 4}

Steps = Mapping[str, int]
"""Tensor name -> index of its step, see `step_size`."""


class _Piece(msgspec.Struct, frozen=True, array_like=True):
    kind: int
    base: int
    target: int
    count: int
    step: int = 0

    @property
    def size(self) -> int:
        return ITEM_BYTES[self.kind] * self.count


class _Stream(msgspec.Struct, frozen=True, array_like=True):
    size: int
    packed: bytes


_NOTHING: Final = _Stream(0, zstandard.compress(b""))


class _Delta(msgspec.Struct, frozen=True, array_like=True):
    version: int
    target_bytes: int
    pieces: _Stream
    literal: _Stream
    codes: _Stream
    exact: _Stream
    changed: _Stream = _NOTHING
    moves: _Stream = _NOTHING


def make_delta(
    base: bytes,
    target: bytes,
    base_tensors: Mapping[str, Tensor],
    target_tensors: Mapping[str, Tensor],
    steps: Steps | None = None,
    ratios: Steps | None = None,
) -> bytes:
    """The delta that turns `base` into `target`.

    Args:
        base_tensors: tensors of the base by name; `target_tensors` those of the target.
        steps: how the target was snapped; a tensor that does not come out bit by bit travels exactly.
        ratios: the same of those that were scaled.
    """
    pieces: list[_Piece] = []
    codes: list[NDArray[np.int16]] = []
    exact: list[NDArray[np.uint32]] = []
    coded: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
    for name, new in sorted(target_tensors.items(), key=lambda item: item[1].offset):
        old = base_tensors.get(name)
        if old is None or (old.count, old.dtype) != (new.count, new.dtype):
            continue
        before, after = old.read(base), new.read(target)
        moved = _moved(before, after, (steps or {}).get(name), (ratios or {}).get(name)) if new.dtype == FLOAT else None
        place = (old.offset, new.offset, new.count)
        if before.itemsize == 1:
            pieces.append(_Piece(CODED, *place))
            coded.append((before.view(np.uint8), after.view(np.uint8)))
        elif before.tobytes() == after.tobytes():
            pieces.append(_Piece(SAME, *place))
        elif moved is not None:
            kind, step, code = moved
            pieces.append(_Piece(kind, *place, step))
            codes.append(code)
        elif new.dtype == FLOAT:
            pieces.append(_Piece(EXACT, *place))
            exact.append(float_differences(before, after))
        else:
            pieces.append(_Piece(WHOLE, *place))
            exact.append(whole_differences(before, after))
    nothing = np.zeros(0, np.uint8), np.zeros(0, np.uint8)
    changed, moves = find_changes(*(np.concatenate(half) for half in zip(nothing, *coded, strict=True)))
    delta = _Delta(
        VERSION,
        len(target),
        _pack(msgspec.msgpack.encode(pieces)),
        _pack(_outside(target, _spans(pieces)), _outside(base, _base_spans(pieces))),
        _pack(planes(zigzag(np.concatenate([np.zeros(0, np.int16), *codes])))),
        _pack(planes(np.concatenate([np.zeros(0, np.uint32), *exact]))),
        _pack(changed),
        _pack(moves),
    )
    return msgspec.msgpack.encode(delta)


def apply_delta(base: bytes, delta: bytes, target_bytes: int) -> bytes:
    """Rebuild the target. The caller checks its hash.

    Args:
        target_bytes: size that the signed manifest declares.

    Raises:
        WireError: not a delta, one for another base or size, or one that does not describe the whole target.
    """
    try:
        read = msgspec.msgpack.decode(delta, type=_Delta)
        if read.version != VERSION:
            raise WireError(f"delta of version {read.version}, this agent reads {VERSION}")
        if read.target_bytes != target_bytes:
            raise WireError(f"the delta makes {read.target_bytes} bytes, the manifest declares {target_bytes}")
        pieces = msgspec.msgpack.decode(_unpack(read.pieces, OVERHEAD_BYTES), type=list[_Piece])
    except msgspec.DecodeError as error:
        raise WireError(f"not a delta: {error}") from error
    _check(pieces, len(base), target_bytes)
    literal = _unpack(read.literal, target_bytes, _outside(base, _base_spans(pieces)))
    target = bytearray(target_bytes)
    _fill_outside(target, _spans(pieces), literal)
    _fill_floats(base, target, pieces, read)
    _fill_bytes(base, target, [p for p in pieces if p.kind == CODED], read)
    return bytes(target)


def _fill_floats(base: bytes, target: bytearray, pieces: Sequence[_Piece], read: _Delta) -> None:
    """Every piece of four bytes a value."""
    target_bytes = len(target)
    stepped, exact = _total(pieces, STEPPED, SCALED), _total(pieces, EXACT, WHOLE)
    codes = unzigzag(unplanes(_unpack(read.codes, 2 * target_bytes, size=2 * stepped), np.uint16))
    differences = unplanes(_unpack(read.exact, 2 * target_bytes, size=4 * exact), np.uint32)
    at_code = at_exact = 0
    for p in pieces:
        if p.kind == CODED:
            continue
        dtype = "<i4" if p.kind == WHOLE else FLOAT
        before, after = np.frombuffer(base, dtype, p.count, p.base), np.frombuffer(target, dtype, p.count, p.target)
        if p.kind == SAME:
            after[:] = before
        elif p.kind in (STEPPED, SCALED):
            moving = move_by if p.kind == STEPPED else scale_by
            after[:] = moving(before, codes[at_code : at_code + p.count], p.step)
            at_code += p.count
        else:
            move = move_wholes if p.kind == WHOLE else move_floats
            after[:] = move(before, differences[at_exact : at_exact + p.count])
            at_exact += p.count


def _fill_bytes(base: bytes, target: bytearray, pieces: Sequence[_Piece], read: _Delta) -> None:
    """Every piece of one byte a value."""
    total = _total(pieces, CODED)
    changed = find_changed(_unpack(read.changed, total, size=-(-total // 8)), total)
    moves = np.frombuffer(_unpack(read.moves, total, size=int(changed.sum())), np.uint8)
    at = used = 0
    for p in pieces:
        here = changed[at : at + p.count]
        mine = moves[used : used + int(here.sum())]
        target[p.target : p.target + p.count] = move_bytes(
            np.frombuffer(base, np.uint8, p.count, p.base), here, mine
        ).tobytes()
        at, used = at + p.count, used + len(mine)


def _check(pieces: Sequence[_Piece], base_bytes: int, target_bytes: int) -> None:
    """Every piece lies inside both files, and none of the target is written twice."""
    if len(pieces) > PIECES_MAX:
        raise WireError(f"{len(pieces)} pieces are over the bound of {PIECES_MAX}")
    end = 0
    for p in pieces:
        if p.kind not in ITEM_BYTES:
            raise WireError(f"the delta has a piece of kind {p.kind}, which this agent does not know")
        inside = 0 <= p.base <= base_bytes - p.size and end <= p.target <= target_bytes - p.size
        if not STEP_MIN <= p.step <= STEP_MAX or p.count < 0 or not inside:
            raise WireError("the delta is for another base, or damaged: a piece lies outside its file")
        end = p.target + p.size


def _total(pieces: Sequence[_Piece], *kinds: int) -> int:
    return sum(p.count for p in pieces if p.kind in kinds)


def _spans(pieces: Sequence[_Piece]) -> list[tuple[int, int]]:
    """What the pieces cover of the target."""
    return [(p.target, p.target + p.size) for p in pieces]


def _base_spans(pieces: Sequence[_Piece]) -> list[tuple[int, int]]:
    """… and of the base."""
    return [(p.base, p.base + p.size) for p in pieces]


def _moved(
    before: NDArray[np.float32], after: NDArray[np.float32], step: int | None, ratio: int | None
) -> tuple[int, int, NDArray[np.int16]] | None:
    """Kind, step and the codes that make `after` of `before`; None when some value would not come out bit by bit."""
    if ratio is not None:
        codes = nearest_ratios(before, after, ratio)
        return (SCALED, ratio, codes) if scale_by(before, codes, ratio).tobytes() == after.tobytes() else None
    if step is not None:
        codes = nearest_moves(before, after, step)
        return (STEPPED, step, codes) if move_by(before, codes, step).tobytes() == after.tobytes() else None
    return None


# --- streams ----------------------------------------------------------------------------------


def _pack(data: bytes, dictionary: bytes = b"") -> _Stream:
    return _Stream(len(data), zstandard.ZstdCompressor(level=LEVEL, dict_data=_dictionary(dictionary)).compress(data))


def _unpack(stream: _Stream, bytes_max: int, dictionary: bytes = b"", *, size: int | None = None) -> bytes:
    """Decompress within a bound: `max_output_size` alone is none when a frame declares its own size."""
    if stream.size > bytes_max + OVERHEAD_BYTES or (size is not None and stream.size != size):
        raise WireError(f"a stream of the delta declares {stream.size} bytes, expected {size or bytes_max}")
    try:
        declared = zstandard.frame_content_size(stream.packed)
        if declared != stream.size:
            raise WireError(f"a stream of the delta declares {stream.size} bytes, its frame {declared}")
        unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(dictionary), max_window_size=WINDOW_BYTES_MAX)
        data = unpacker.decompress(stream.packed, max_output_size=stream.size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"the delta is for another base, or damaged ({error})") from error
    return data


def _dictionary(data: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(data) > 8 else None


def _outside(data: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """The bytes that no span covers, joined."""
    parts, at = [], 0
    for begin, end in sorted(spans):
        parts.append(data[at:begin])
        at = max(at, end)
    parts.append(data[at:])
    return b"".join(parts)


def _fill_outside(data: bytearray, spans: Sequence[tuple[int, int]], literal: bytes) -> None:
    """Put the literal back where no span lies.

    Raises:
        WireError: it is longer or shorter than the gaps.
    """
    at = taken = 0
    for begin, end in [*spans, (len(data), len(data))]:
        size = begin - at
        data[at:begin] = literal[taken : taken + size].ljust(size, b"\0")
        taken, at = taken + size, end
    if taken != len(literal):
        raise WireError(f"the delta's literal has {len(literal)} bytes, the gaps have {taken}")

"""Weighted means of weight updates, folded one reply at a time. Pure: arrays in, arrays out.

Memory is O(model), whatever the number of replies: one float32 sum, and one float64 total from the first flush on. A
reply is looked through for values that are not finite and then added, both straight from the bytes that came: no copy,
no temporary of its size, and a wrong one has changed nothing.

Precision: float32 updates are summed in float32, and each `PARTIAL_FOLDS` of them are added to a float64 total. So the
error does not grow with the number of replies, as a plain float32 sum's does (Higham, *Accuracy and Stability of
Numerical Algorithms*, ch. 4: blocked summation); float64 and integer arrays are summed in float64 throughout.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import PeerError, WireError

BLOCK_VALUES = 65_536  # 256 KiB of float32: a block and its product stay in a core's L2 cache
PARTIAL_FOLDS = 256  # float32 additions before the float64 total takes over; the pass over it is then < 2 % of the work
HEADER_BYTES_MAX = 4096  # of an .npy buffer; a real one has 128
_KINDS = "fiub"  # floats, integers, booleans

Buffer = bytes | memoryview
Values = NDArray[np.generic]


class Kernel(Protocol):
    """The two passes over an update; `cloud.federation.kernels` has a faster one for floats."""

    def fold(self, totals: Sequence[Values], update: Sequence[Values], weight: float) -> int | None:
        """totals += weight * update, array by array; or change nothing.

        Returns:
            The place of an array with a value that is not finite, if there is one.
        """
        ...


class NumpyKernel:
    """Works block by block, so that what is in between stays in the cache, at any address and of any type."""

    def __init__(self) -> None:
        self._aligned = np.empty(BLOCK_VALUES * 8, np.uint8)
        self._product = np.empty(BLOCK_VALUES * 8, np.uint8)

    def fold(self, totals: Sequence[Values], update: Sequence[Values], weight: float) -> int | None:
        for place, values in enumerate(update):
            if not self._is_finite(values):
                return place
        for total, values in zip(totals, update, strict=True):
            self._add(total, values, weight)
        return None

    def _is_finite(self, values: Values) -> bool:
        if values.dtype.kind != "f":
            return True
        return all(np.isfinite(block).all() for _, block in self._blocks(values))

    def _add(self, total: Values, values: Values, weight: float) -> None:
        factor = total.dtype.type(weight)
        for start, block in self._blocks(values):
            part = self._product[: len(block) * total.itemsize].view(total.dtype)
            np.multiply(block, factor, out=part)
            into = total[start : start + len(block)]
            np.add(into, part, out=into)

    def _blocks(self, values: Values) -> Iterator[tuple[int, Values]]:
        width = values.itemsize
        for start in range(0, len(values), BLOCK_VALUES):
            block = values[start : start + BLOCK_VALUES]
            if not block.flags.aligned:  # numpy is several times slower at odd addresses than this copy is
                self._aligned[: len(block) * width] = block.view(np.uint8)
                block = self._aligned[: len(block) * width].view(values.dtype)
            yield start, block


class Misfit(WireError):
    """An update that does not fit the model; `kind` is what it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Form:
    """What an array of the model looks like."""

    dtype: np.dtype
    shape: tuple[int, ...]
    header: bytes
    """The .npy header that numpy writes for it."""

    @classmethod
    def of(cls, dtype: np.dtype, shape: tuple[int, ...]) -> "Form":
        """Raises:
        WireError: a dtype that has no mean.
        """
        if dtype.kind not in _KINDS:
            raise Misfit("dtype", f"arrays of {dtype} have no mean")
        buffer = io.BytesIO()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(buffer, header)
        return cls(dtype, shape, buffer.getvalue())

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def sum_dtype(self) -> np.dtype:
        """float32 for what has no more precision than that."""
        return np.dtype(np.float32 if self.dtype.kind == "f" and self.dtype.itemsize <= 4 else np.float64)

    def values(self, name: str, buffer: Buffer) -> Values:
        """The values of an .npy buffer, flat, without a copy; perhaps at an odd address.

        Raises:
            Misfit: the buffer is no array of this form; `kind` is malformed, shape or dtype.
        """
        begin = len(self.header)
        if bytes(buffer[:begin]) != self.header:
            begin = self._other_header(name, buffer)
        if len(buffer) - begin != self.size * self.dtype.itemsize:
            raise Misfit("malformed", f"{name} has {len(buffer) - begin} bytes for {self.shape} of {self.dtype}")
        return np.frombuffer(buffer, self.dtype, offset=begin)

    def _other_header(self, name: str, buffer: Buffer) -> int:
        """Where the values begin behind a header that is written another way; says what else is wrong."""
        head = io.BytesIO(bytes(buffer[:HEADER_BYTES_MAX]))
        try:
            version = np.lib.format.read_magic(head)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(head)
        except (ValueError, SyntaxError, TypeError, EOFError) as error:
            raise Misfit("malformed", f"{name} is no .npy buffer: {error}") from error
        if shape != self.shape:
            raise Misfit("shape", f"{name} has shape {shape}, the model has {self.shape}")
        if dtype != self.dtype:
            raise Misfit("dtype", f"{name} is {dtype}, the model is {self.dtype}")
        if fortran and len(shape) > 1:
            raise Misfit("malformed", f"{name} is in column order; send it in row order")
        return head.tell()


class Mean:
    """The weighted mean of updates of one model.

    Args:
        forms: name -> form of every array; an update must have these and no others.
    """

    def __init__(self, forms: Mapping[str, Form], kernel: Kernel | None = None) -> None:
        self._forms = dict(forms)
        self._kernel = kernel or NumpyKernel()
        self._partial = {name: np.zeros(form.size, form.sum_dtype) for name, form in self._forms.items()}
        self._total: dict[str, NDArray[np.float64]] = {}
        self._since_flush = 0
        self.folds = 0
        self.weight = 0.0

    def add(self, arrays: Mapping[str, Buffer], weight: float) -> None:
        """Fold an update in, whole or not at all.

        Raises:
            Misfit: names, shapes or types that are not the model's (`malformed`, `shape`, `dtype`), a weight that is
                not positive or not finite (`weight`), a value that is not finite (`not-finite`). Nothing was changed.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise Misfit("weight", f"an update's weight must be positive, not {weight}")
        if arrays.keys() != self._forms.keys():
            raise Misfit("malformed", "an update's arrays are not named as the model's")
        update = [form.values(name, arrays[name]) for name, form in self._forms.items()]
        wrong = self._kernel.fold(list(self._partial.values()), update, weight)
        if wrong is not None:
            raise Misfit("not-finite", f"{list(self._forms)[wrong]} holds values that are not finite")
        self.folds += 1
        self.weight += weight
        self._since_flush += 1
        if self._since_flush == PARTIAL_FOLDS:
            self._flush()

    def add_mean(self, other: "Mean", weight: float) -> None:
        """Fold another mean of the same model: a site's gateways first, then the sites.

        Args:
            weight: what the other mean counts; its own `weight` makes two levels equal to one.

        Raises:
            PeerError: it is of another model, or empty.
        """
        if other._forms != self._forms or not other.folds:
            raise PeerError("a mean that is empty or of another model cannot be folded")
        self._flush()
        other._flush()
        for name, total in other._total.items():
            part = total * (weight / other.weight)
            self._total[name] = self._total[name] + part if name in self._total else part
        self.folds += other.folds
        self.weight += weight

    def result(self) -> dict[str, NDArray[np.generic]]:
        """The mean, in the model's shapes; floats keep their type, integers become float64, as with Flower.

        Raises:
            PeerError: nothing was folded.
        """
        if not self.folds:
            raise PeerError("no update was folded")
        self._flush()
        found: dict[str, NDArray[np.generic]] = {}
        for name, form in self._forms.items():
            dtype = form.dtype if form.dtype.kind == "f" else np.dtype(np.float64)
            found[name] = (self._total[name] / self.weight).astype(dtype, copy=False).reshape(form.shape)
        return found

    def totals(self) -> dict[str, NDArray[np.float64]]:
        """The weighted sums themselves, in the model's shapes: what sums and not means are wanted for."""
        self._flush()
        return {
            name: self._total.get(name, np.zeros(form.size)).reshape(form.shape) for name, form in self._forms.items()
        }

    def _flush(self) -> None:
        """Add the partial sums to the total and begin new ones."""
        if not self._since_flush:
            return
        for name, values in self._partial.items():
            if name not in self._total:
                self._total[name] = values.astype(np.float64)
            else:
                self._total[name] += values
            values.fill(0)
        self._since_flush = 0

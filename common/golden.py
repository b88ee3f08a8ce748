"""The golden layer: a few inputs, and what a release's models answer to them at the centre. Pure codec.

A gateway runs them before it lets a release near a camera: same file, other hardware, other kernels. The inputs are
drawn, not photographed: a release travels to every site of the group, and no site's pixels may.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.errors import WireError

SIDE_PX: Final = 16
"""Inputs are small squares that the backbone's own preprocessing enlarges: blots of colour, under a kilobyte each."""
INPUTS: Final = 8
FEATURES: Final = 64
"""Of an embedding, so many features are kept: a wrong kernel shows in all of them."""
GOLDEN_BYTES_MAX: Final = 1024 * 1024


class GoldenHead(msgspec.Struct, frozen=True):
    """What one head answers on one backbone: `probabilities` float32 (inputs, classes)."""

    backbone: str
    head: str
    probabilities: bytes


class Golden(msgspec.Struct, frozen=True):
    """Inputs and answers."""

    inputs: bytes
    """uint8 (inputs, SIDE_PX, SIDE_PX, 3) BGR"""
    embeddings: dict[str, bytes]
    """Backbone (or variant) -> float32 (inputs, features), the first `FEATURES` of each embedding."""
    heads: tuple[GoldenHead, ...]
    """Of the shared heads, on every backbone; a personal head is judged by its backbone's embeddings."""

    def pictures(self) -> NDArray[np.uint8]:
        """The inputs as an array (inputs, SIDE_PX, SIDE_PX, 3)."""
        return np.frombuffer(self.inputs, np.uint8).reshape(-1, SIDE_PX, SIDE_PX, 3)

    def embeddings_of(self, backbone: str) -> NDArray[np.float32] | None:
        """What a backbone answers, (inputs, features); None where it is not among them."""
        data = self.embeddings.get(backbone)
        return None if data is None else np.frombuffer(data, "<f4").reshape(len(self.pictures()), -1)

    def probabilities_of(self, backbone: str, head: str) -> NDArray[np.float32] | None:
        """What a head answers on a backbone, (inputs, classes); None where it is not among them."""
        for item in self.heads:
            if (item.backbone, item.head) == (backbone, head):
                return np.frombuffer(item.probabilities, "<f4").reshape(len(self.pictures()), -1)
        return None


def draw_inputs(seed: int = 0) -> NDArray[np.uint8]:
    """Inputs of one seed: always the same."""
    return np.random.default_rng(seed).integers(0, 256, (INPUTS, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)


def encode_golden(golden: Golden) -> bytes:
    """The layer's bytes."""
    return msgspec.msgpack.encode(golden)


def decode_golden(data: bytes) -> Golden:
    """Read a golden layer.

    Raises:
        WireError: not one, or its arrays are not of the shapes they should be.
    """
    try:
        if len(data) > GOLDEN_BYTES_MAX:
            raise WireError(f"a golden layer of {len(data)} bytes is over the bound")
        golden = msgspec.msgpack.decode(data, type=Golden)
        for name in golden.embeddings:
            golden.embeddings_of(name)
        for item in golden.heads:
            golden.probabilities_of(item.backbone, item.head)
    except (msgspec.DecodeError, ValueError) as error:
        raise WireError(f"not a golden layer: {error}") from error
    return golden

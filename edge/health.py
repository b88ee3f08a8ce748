"""What is wrong with a camera's picture: dark, frozen, covered, moved and garbled ones told from ordinary scenes.

Pure: instants and the luma at low resolution (`edge.motion`) come as arguments. Key frames are observed, because what
a codec copies from frame to frame is no sign of life; a second apart at least, which costs nothing. What a picture is
compared with is this camera's own past:

- *dark*: no light reaches the sensor. Darkness with a lamp in it is a night, not a fault.
- *frozen*: the same picture again, or one that differs by less than this camera's own noise. A scene may be still; a
  sensor never is.
- *covered*, *moved*: the edges that were always there are gone. Block by block, the gradient is correlated with its
  slow mean, in which passing things average out: a change of light scales all gradients and changes no correlation, a
  vehicle hides some of the blocks, a turned or covered camera has none of them left. When hardly any gradient is left
  at all, something covers the lens; otherwise the camera looks elsewhere.
- *garbled*: what arrives gives no picture.

A fault is reported when it has lasted for `HOLD_S`, and is over when it has been gone for `RELIEF_S`. While there is
one nothing is learnt, so that a camera that is turned back is known again; a view that stays for `ADOPT_S` becomes the
usual one.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge.motion import Luma

Plane = NDArray[np.float32]


class Condition(Enum):
    """The words of `CameraState.state` for a stream that arrives."""

    LIVE = "live"
    DARK = "dark"
    FROZEN = "frozen"
    COVERED = "covered"
    MOVED = "moved"
    GARBLED = "garbled"


SENTENCES: Final = {
    Condition.LIVE: "",
    Condition.DARK: "the picture is black: lens covered or no light",
    Condition.FROZEN: "the same picture again and again: the camera or its encoder hangs; restart it",
    Condition.COVERED: "the picture has lost its edges: something is in front of the lens, or it is dirty",
    Condition.MOVED: "the camera looks elsewhere: it was turned, pushed, or has come loose",
    Condition.GARBLED: "what arrives cannot be decoded: check cable, network and the camera's encoder",
}

BLIND: Final = frozenset({Condition.DARK, Condition.FROZEN, Condition.GARBLED})
"""In these a picture says nothing of what is before the camera now, whatever the model makes of it. *Covered* and
*moved* are not among them: smoke that fills the picture looks like a cover, and is what an alarm is for."""

EVERY_S: Final = 0.9
STARVED_S: Final = 5.0
"""Without a picture for so long, one is wanted whatever it costs (long groups, damaged key frames)."""
GARBLED_S: Final = 3.0
"""Longer than a stream that was joined in the middle of a group gives nothing but errors."""
HOLD_S: Final = 3.0
"""Longer than somebody takes to walk past the lens; with groups of 4 s a fault is still reported within 10 s."""
RELIEF_S: Final = 2.0
ADOPT_S: Final = 1800.0
PAUSE_S: Final = 10.0
"""A gap counts for at most so long: after an hour without a stream the next picture must not be the whole memory."""

DARK_MEAN: Final = 28.0
DARK_LAMP: Final = 44.0
"""Mean of the picture, and the 99th percentile, under which there is no light; black is 16 in broadcast range."""
FROZEN_S: Final = 3.8
FROZEN_QUIVER: Final = (0.05, 0.15)
FROZEN_SHARE: Final = 0.4
"""Mean change of luma from key frame to key frame in the median block, in grey levels, and its share of the usual one,
up to which the sensor is taken to be dead although the encoder is not; a usual change below the first figure says
nothing. A real yard with sensor noise of 0.3 to 2 grey levels keeps 0.18 to 0.6 after compression; frozen, under rate
control, it falls to 0 to 0.15 within one to four groups."""

FROZEN_STIR: Final = 0.65
"""Share of the usual change of the liveliest tenth of the blocks, up to which nothing moves anywhere: a white wall that
drives into the picture has no noise either, what is beside it has."""

BLOCK: Final = 10
"""Cells per side of a block: of 160 x 90 cells 16 x 9 blocks; a camera turned by a fifteenth of its view is another."""
TEXTURE_MIN: Final = 1.2
"""Mean gradient (grey levels per cell) from which a block has edges to be known by."""
FLAT: Final = 0.4
"""Mean gradient of the whole picture under which nothing can be seen in it, whatever it was before."""
ALIKE: Final = 0.5
BLOCKS_MIN: Final = 20
"""With fewer blocks that usually stay alike a turn cannot be told: a wall, a belt that fills the view."""
LOST: Final = 0.4
"""Share of the usual number of alike blocks below which the view is another one. Ordinary footage keeps 0.8 of them, a
view shifted by a twelfth 0.04 to 0.35."""
TEXTURE_LOST: Final = 0.4
WARM: Final = 6
"""Pictures before the past says anything."""
MEMORY_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Signs:
    """What is measured of one picture."""

    lightless: bool
    edges: Plane
    texture: float
    """Mean of `edges`."""
    same: bool
    """Equal to the picture before."""
    quiver: float
    """Mean change since the picture before, of the median block; infinite for the first."""
    stir: float
    """The same of the block that is livelier than nine tenths."""
    alike: int
    """Blocks that show what they always did."""


def glance(luma: Luma) -> Condition:
    """What one picture shows without a past: dark, covered (nothing to be seen), or live."""
    plane = luma.astype(np.float32)
    if is_lightless(plane):
        return Condition.DARK
    return Condition.COVERED if float(gradient(plane).mean()) < FLAT else Condition.LIVE


class Health:
    """The condition of one camera's picture, over all its connections. Written by one thread, read by any.

    Args:
        can_freeze: False for files, which may show stills.
    """

    def __init__(self, *, can_freeze: bool = True) -> None:
        self.condition = Condition.LIVE
        self.pictures = 0
        """Pictures observed so far."""
        self.damaged = 0
        """Packets or frames that could not be decoded, or only in parts."""
        self._can_freeze = can_freeze
        self._suspected = Condition.LIVE
        self._suspected_ns = self._reported_ns = self._at_ns = 0
        self._same_ns: int | None = None
        self._damaged_ns: int | None = None
        self._luma: Plane | None = None
        self._view: View | None = None

    def wants(self, at_ns: int, *, is_key: bool) -> bool:
        """Whether to observe a decoded frame."""
        passed_ns = at_ns - self._at_ns
        return passed_ns < 0 or passed_ns >= (EVERY_S if is_key else STARVED_S) * 1e9

    def starved(self, at_ns: int) -> bool:
        """Whether a picture is overdue."""
        return at_ns - self._at_ns >= STARVED_S * 1e9

    def damage(self, at_ns: int) -> None:
        """A packet could not be decoded. Some are lost on every network; it is a fault when no picture gets through."""
        self.damaged += 1
        if self._damaged_ns is None or at_ns < self._damaged_ns:
            self._damaged_ns = at_ns
        if self.condition is not Condition.GARBLED and at_ns - self._damaged_ns >= GARBLED_S * 1e9:
            self._report(Condition.GARBLED, at_ns)

    def observe(self, at_ns: int, luma: Luma) -> Condition:
        """Take a picture; returns the condition from now on.

        Args:
            at_ns: when it was captured; time may jump back (a loop, a reconnect, a clock that was set).
            luma: uint8 (rows, columns), about 160 columns.
        """
        plane, before = luma.astype(np.float32), self._luma
        passed_s = min(max(0, at_ns - self._at_ns) / 1e9, PAUSE_S)
        if at_ns < self._at_ns:
            self._same_ns = None
            self._suspected_ns = self._reported_ns = at_ns
        if self._view is None or before is None or before.shape != plane.shape:
            self._view, before = View(plane), None
        signs = self._view.measure(plane, before)
        found = self._judge(self._view, signs, at_ns)
        if found is Condition.LIVE and self.condition is Condition.LIVE:
            self._view.learn(signs, passed_s)
        self.pictures += 1
        self._at_ns, self._luma, self._damaged_ns = at_ns, plane, None
        self._settle(at_ns, found)
        return self.condition

    def _judge(self, view: "View", signs: Signs, at_ns: int) -> Condition:
        """What this picture alone looks like, beside the past."""
        frozen = self._can_freeze and self._is_frozen(view, signs, at_ns)
        if signs.lightless:
            return Condition.DARK
        if signs.texture < FLAT:
            return Condition.COVERED
        if view.is_lost(signs):
            return Condition.COVERED if signs.texture < TEXTURE_LOST * view.texture else Condition.MOVED
        return Condition.FROZEN if frozen else Condition.LIVE

    def _is_frozen(self, view: "View", signs: Signs, at_ns: int) -> bool:
        if not signs.same and not view.is_noiseless(signs):
            self._same_ns = None
            return False
        if self._same_ns is None:
            self._same_ns = self._at_ns
        return at_ns - self._same_ns >= FROZEN_S * 1e9

    def _settle(self, at_ns: int, found: Condition) -> None:
        """Hysteresis: what is found must last before it counts."""
        if self.condition is Condition.GARBLED:  # a picture has come through
            self._report(Condition.LIVE, at_ns)
        if found is not self._suspected:
            self._suspected, self._suspected_ns = found, at_ns
        hold_s = RELIEF_S if found is Condition.LIVE else HOLD_S
        if found is Condition.FROZEN:
            hold_s = 0.0  # it has lasted already
        if found is not self.condition and at_ns - self._suspected_ns >= hold_s * 1e9:
            self._report(found, at_ns)
        if self.condition is Condition.MOVED and at_ns - self._reported_ns >= ADOPT_S * 1e9:
            self._view = None  # the next picture begins another
            self._report(Condition.LIVE, at_ns)

    def _report(self, condition: Condition, at_ns: int) -> None:
        self.condition = self._suspected = condition
        self._reported_ns = self._suspected_ns = at_ns


class View:
    """What a camera usually shows: the slow mean of its gradients, and how much of it a picture usually repeats.

    Args:
        plane: the first picture.
    """

    def __init__(self, plane: Plane) -> None:
        self.texture = 0.0
        self._alike = self._quiver = self._stir = 0.0
        self._edges = gradient(plane)
        self._pictures = 0

    @property
    def is_warm(self) -> bool:
        """Enough has been seen to compare with."""
        return self._pictures >= WARM

    def measure(self, plane: Plane, before: Plane | None) -> Signs:
        """The signs of a picture, beside the one before and the usual view."""
        edges = gradient(plane)
        quiver = stir = np.inf
        if before is not None:
            changes = blocks(np.abs(plane - before)).mean(axis=(1, 3))
            quiver, stir = (float(value) for value in np.percentile(changes, (50, 90)))
        return Signs(
            lightless=is_lightless(plane),
            edges=edges,
            texture=float(edges.mean()),
            same=stir == 0 and before is not None and np.array_equal(plane, before),
            quiver=quiver,
            stir=stir,
            alike=alike_blocks(edges, self._edges),
        )

    def is_lost(self, signs: Signs) -> bool:
        """Hardly any block shows what it always did."""
        return self.is_warm and self._alike >= BLOCKS_MIN and signs.alike < LOST * self._alike

    def is_noiseless(self, signs: Signs) -> bool:
        """Less has changed since the picture before than the sensor's noise alone always changes."""
        least, most = FROZEN_QUIVER
        return (
            self.is_warm
            and self._quiver >= least
            and signs.quiver <= min(most, FROZEN_SHARE * self._quiver)
            and signs.stir <= FROZEN_STIR * self._stir
        )

    def learn(self, signs: Signs, passed_s: float) -> None:
        """An ordinary picture: the means follow, as true means until the memory is full."""
        self._pictures += 1
        rate = max(1.0 / self._pictures, float(-np.expm1(-passed_s / MEMORY_S)))
        self._edges = self._edges + rate * (signs.edges - self._edges)
        self.texture += rate * (signs.texture - self.texture)
        self._alike += rate * (signs.alike - self._alike)
        if np.isfinite(signs.quiver):
            # what moves is no noise: one passing vehicle must not raise the usual by much
            self._quiver += rate * (min(signs.quiver, 2 * self._quiver + 0.1) - self._quiver)
            self._stir += rate * (min(signs.stir, 2 * self._stir + 0.1) - self._stir)


def is_lightless(plane: Plane) -> bool:
    """Black all over, without a lamp anywhere."""
    return float(plane.mean()) < DARK_MEAN and float(np.percentile(plane, 99)) < DARK_LAMP


def gradient(plane: Plane) -> Plane:
    """Magnitude of the gradient in grey levels per cell, float32 of the plane's shape.

    Softened over 3 x 3 cells before, because noise has a gradient too, and after: an edge that trembles by a cell stays
    where it is.
    """
    soft = soften(np.pad(plane, ((2, 3), (2, 3)), mode="edge"))
    across = soft[1:, 1:] - soft[1:, :-1]
    down = soft[1:, 1:] - soft[:-1, 1:]
    return soften(np.hypot(across, down))


def soften(plane: Plane) -> Plane:
    """Mean over 3 x 3 cells, float32 (rows - 2, columns - 2)."""
    rows = plane[:-2] + plane[1:-1] + plane[2:]
    soft: Plane = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 9)
    return soft


def blocks(plane: Plane) -> Plane:
    """Whole blocks of a plane, float32 (block rows, BLOCK, block columns, BLOCK); the rest at the right and
    at the bottom is cut off."""
    side = min(BLOCK, *plane.shape)
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    return plane[: rows * side, : columns * side].reshape(rows, side, columns, side)


def alike_blocks(edges: Plane, usual: Plane) -> int:
    """How many blocks of the usual view that have edges have them where they always were, by Pearson's correlation."""
    one, other = blocks(edges), blocks(usual)
    textured = other.mean(axis=(1, 3)) >= TEXTURE_MIN
    one = one - one.mean(axis=(1, 3), keepdims=True)
    other = other - other.mean(axis=(1, 3), keepdims=True)
    size = np.sqrt((one * one).sum(axis=(1, 3)) * (other * other).sum(axis=(1, 3)))
    correlation = (one * other).sum(axis=(1, 3)) / np.maximum(size, 1e-6)
    return int(np.count_nonzero(textured & (correlation >= ALIKE)))

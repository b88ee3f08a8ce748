"""What a look means for its camera: is it striking, is a detector to be doubted, does an event begin or end? Pure.

One `Judge` per camera holds what those questions need of the past. What is said about a scenario comes from its head,
or from a detector's boxes within the zones; each detector raises events under its own name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.manifest import DetectorLayer, Manifest
from common.messages import Box, Prediction
from edge.doubts import Doubts
from edge.events import EventTrack, Turn
from edge.patches import PatchNormal, regions
from edge.settings import CameraSettings, EventSettings
from edge.striking import Striking
from edge.zones import WHOLE, Point, patch_mask, share_inside, to_whole

BOX_INSIDE_MIN: Final = 0.5
"""A box counts for a zone when at least this share of it lies there."""
HEAT: Final = "heat"
"""Name under which regions of the heat map stand among the boxes of detectors; also that of their zones."""
UNUSUAL: Final = "unusual"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one detector said of a look."""

    declared: DetectorLayer
    score_min: float
    boxes: tuple[Box, ...]
    faint: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a look."""

    striking: bool
    """Looks become dense."""
    insists: bool
    """The next look must not wait for a change in the picture."""
    doubt: float
    """Of the detectors, 0..1."""
    boxes: tuple[Box, ...]
    """Those within the zones."""
    turns: tuple[tuple[str, Turn], ...] = ()
    """Scenario (or detector) and what its event does."""


@dataclass(slots=True)
class Judge:
    """The judge of one camera."""

    camera: CameraSettings
    events: EventSettings
    _striking: Striking = field(init=False)
    _tracks: dict[str, EventTrack] = field(default_factory=dict, init=False)
    _doubts: dict[str, Doubts] = field(default_factory=dict, init=False)
    _normal: dict[str, str] = field(default_factory=dict, init=False)
    _patches: PatchNormal = field(default_factory=PatchNormal, init=False)
    _mask: NDArray[np.bool_] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._striking = Striking(self.camera.gears)

    @property
    def open_events(self) -> tuple[str, ...]:
        """Scenarios and detectors with an open event."""
        return tuple(name for name, track in self._tracks.items() if track.is_open)

    def adopt(self, manifest: Manifest, at_ns: int) -> tuple[tuple[str, Turn], ...]:
        """Another release looks from now on: events of what it no longer watches are closed."""
        self._normal = {scenario.name: scenario.normal for scenario in manifest.scenarios}
        self._doubts = {}
        names = {*self._normal, *(detector.name for detector in manifest.detectors)}
        gone = [(name, self._tracks.pop(name)) for name in list(self._tracks) if name not in names]
        closed = [(name, track.lose(at_ns, "no longer watched for")) for name, track in gone]
        return tuple((name, turn) for name, turn in closed if turn)

    def lose(self, at_ns: int, cause: str) -> tuple[tuple[str, Turn], ...]:
        """The camera gives no picture: what it last showed says nothing any more."""
        closed = [(name, track.lose(at_ns, cause)) for name, track in self._tracks.items()]
        return tuple((name, turn) for name, turn in closed if turn)

    def judge(
        self,
        at_ns: int,
        predictions: Sequence[Prediction],
        seen: Sequence[Seen] = (),
        patches: NDArray[np.float32] | None = None,
        blind: str = "",
    ) -> Verdict:
        """A look at `at_ns`; looks are judged in their order.

        Args:
            patches: its feature map (d, h, w), where there is one.
            blind: why the picture says nothing of what is there now (a frozen camera shows its last alarm for ever):
                events are closed by it, none begins, and nothing of it is learnt as normal.
        """
        inside = [self._within_zones(item) for item in seen]
        striking = self._striking.judge(predictions, self.open_events)
        doubt = max((self._doubt(item, predictions) for item in inside), default=0.0)
        turns: tuple[tuple[str, Turn], ...] = ()
        if blind:
            turns = self.lose(at_ns, f"camera {blind}")
        elif self.events.enabled:
            turns = self._follow(at_ns, self._levels(predictions, inside))
        return Verdict(
            striking,
            any(track.insists for track in self._tracks.values()),
            doubt,
            (*(box for item in inside for box in item.boxes), *self._hot_boxes(None if blind else patches)),
            turns,
        )

    def _levels(self, predictions: Sequence[Prediction], seen: Sequence[Seen]) -> Mapping[str, tuple[float, str]]:
        """How much attention each scenario and detector asks for, and what for."""
        levels: dict[str, tuple[float, str]] = {}
        for item in predictions:
            normal = self._normal.get(item.scenario, "")
            if normal in item.classes:
                shares = dict(zip(item.classes, item.probabilities, strict=True))
                usual = shares.pop(normal)
                levels[item.scenario] = (1 - usual, max(shares, key=shares.__getitem__, default=""))
        for found in seen:
            alarming = [box for box in found.boxes if found.declared.raises(box.label)]
            best = max(alarming, key=lambda box: box.score, default=None)
            # a box that counts as found is news, whatever line the detector draws: the level is that it was found
            levels[found.declared.name] = (1.0, best.label) if best else (0.0, "")
        return levels

    def _follow(self, at_ns: int, levels: Mapping[str, tuple[float, str]]) -> tuple[tuple[str, Turn], ...]:
        turns = []
        for name, (level, label) in levels.items():
            track = self._tracks.get(name)
            if track is None:
                track = self._tracks[name] = EventTrack(self.events.rule(name))
            turn = track.look(at_ns, level, label)
            if turn:
                turns.append((name, turn))
        return tuple(turns)

    def _doubt(self, seen: Seen, predictions: Sequence[Prediction]) -> float:
        name = seen.declared.name
        doubts = self._doubts.get(name)
        if doubts is None:
            normal = self._normal.get(seen.declared.scenario, "")
            doubts = self._doubts[name] = Doubts(seen.declared, seen.score_min, normal)
        return doubts.judge(seen.boxes, seen.faint, predictions)

    def _within_zones(self, seen: Seen) -> Seen:
        polygons = self.zones_of(seen.declared.name) or self.zones_of(seen.declared.scenario)
        if not polygons:
            return seen

        def within(box: Box) -> bool:
            whole = to_whole((box.left, box.top, box.right, box.bottom), self.camera.zone or WHOLE)
            return share_inside(polygons, whole) >= BOX_INSIDE_MIN

        return Seen(
            seen.declared,
            seen.score_min,
            tuple(box for box in seen.boxes if within(box)),
            tuple(box for box in seen.faint if within(box)),
        )

    def _hot_boxes(self, patches: NDArray[np.float32] | None) -> tuple[Box, ...]:
        """Where the picture is unlike this camera's normal, within the zones that are for all or for `HEAT`."""
        if patches is None:
            return ()
        heat, hot = self._patches.look(patches)
        if self._mask is None or self._mask.shape != hot.shape:
            self._mask = (
                patch_mask(self.zones_of(HEAT), hot.shape[0], hot.shape[1], self.camera.zone or WHOLE) >= BOX_INSIDE_MIN
            )
        return tuple(
            Box(HEAT, UNUSUAL, 1 - 1 / max(item.heat, 1.0), item.left, item.top, item.right, item.bottom)
            for item in regions(heat, hot & self._mask)
        )

    def zones_of(self, scenario: str) -> tuple[tuple[Point, ...], ...]:
        """The polygons of a scenario or detector on this camera; none: it counts everywhere."""
        return tuple(zone.points for zone in self.camera.zones if zone.scenario in ("", scenario))

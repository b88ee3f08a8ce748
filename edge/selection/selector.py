"""Spends the budget: frames of a camera compete within a window of capture time. Pure: no clock, no file, no thread.

A frame's value is the mean of its ranks under the rules of `selection.rules`, among the gateway's recent frames. The
window's budget then goes to the set of frames that best *covers* it: greedy facility location (Nemhauser 1978) on
embeddings centred on the window, a frame to be covered weighing 1 plus `VALUE_WEIGHT` times its value. By rank alone
the budget buys many pictures of one oddity; coverage buys what teaches the scene (docs/decisions/0007).
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from common.coverage import Coverage
from common.messages import Scores
from edge.selection.candidate import Candidate, Chosen, Sight
from edge.selection.normal import GAP_S_MAX, CameraNormal, Normality
from edge.selection.ranks import SIZE, Ranks
from edge.selection.rules import Abnormal, Aspect, Margin, Rule, Unexplained, open_rule
from edge.settings import SelectionSettings

SENT: Final = 200
"""Embeddings of chosen frames kept per camera, against sending the same again."""
HELD_MAX: Final = 256
"""Frames of one window held with their pictures; beyond it the least valuable is let go."""
CARRY_WINDOWS: Final = 3.0
"""Unused budget that may be saved up, in windows."""
VALUE_WEIGHT: Final = 1.0
"""How much more than an unremarkable frame the most valuable one weighs in the coverage."""
FIRST_CREDIT: Final = 1.0
"""A new camera may send its first sample at the end of its first window, however small its budget."""
EXPLAINING: Final[tuple[Rule, ...]] = (Unexplained(), Abnormal(), Margin())
"""One rule per aspect: what is said of a frame in the aspects that no configured rule speaks of."""


@dataclass(frozen=True, slots=True)
class CameraMemory:
    """What a camera's selection carries over a restart."""

    space: str
    """Name of the backbone whose embeddings these are."""
    budget: float
    sent: tuple[NDArray[np.float64], ...]
    normal: CameraNormal


@dataclass(frozen=True, slots=True)
class _Held:
    candidate: Candidate
    unit: NDArray[np.float64]
    ranks: dict[Aspect, float]
    value: float

    @property
    def reason(self) -> str:
        if self.candidate.doubt and self.candidate.doubt >= self.value:
            return "doubtful"
        return max(self.ranks, key=self.ranks.__getitem__)


@dataclass(slots=True)
class _Camera:
    sent: deque[NDArray[np.float64]] = field(default_factory=lambda: deque(maxlen=SENT))
    held: list[_Held] = field(default_factory=list)
    opened_ns: int | None = None
    last_ns: int = 0
    budget: float = FIRST_CREDIT
    space: str = ""
    ever_sent: int = 0


class Selector:
    """Chooses frames of all cameras of a gateway, an equal share of the budget each.

    Args:
        settings: budget, window, trickle, rules.
        camera_ids: the cameras that will offer frames.
        seed: of the random trickle.

    Raises:
        OperatorError: `settings.rules` names a rule that there is not.
    """

    def __init__(self, settings: SelectionSettings, camera_ids: Sequence[str], seed: int = 0) -> None:
        self._settings = settings
        self._cameras = {name: _Camera() for name in camera_ids}
        self._random = random.Random(seed)
        self._space = ""
        self._per_s = 0.0
        self.allot(settings.samples_per_hour)
        self._normality = Normality(settings.normal_s)
        valued = [open_rule(name) for name in settings.rules]
        self._valued = len(valued)
        spoken = {rule.aspect for rule in valued}
        self._rules = (*valued, *(rule for rule in EXPLAINING if rule.aspect not in spoken))
        self._ranks = tuple(Ranks(seed) for _ in self._rules)
        self.offered = 0
        self.refused = 0
        """Looks that were not judged: their embedding or a head's answer held something that is no number."""

    def allot(self, samples_per_hour: float) -> None:
        """The budget of all cameras that there are now, from now on; what was saved up stays."""
        self._per_s = samples_per_hour / 3600.0 / max(1, len(self._cameras))

    def attach(self, camera_id: str) -> None:
        """Another camera will offer frames; `allot` follows."""
        self._cameras[camera_id] = _Camera(space=self._space)

    def detach(self, camera_id: str) -> None:
        """A camera offers no more; what it held is let go, so `flush` comes before and `allot` follows."""
        del self._cameras[camera_id]
        self._normality.forget(camera_id)

    def offer(self, candidate: Candidate) -> list[Chosen]:
        """Take a frame; returns what was chosen of the window that it closes, most often nothing."""
        self.offered += 1
        if not _is_finite(candidate):
            self.refused += 1
            return []
        camera = self._cameras[candidate.camera_id]
        at_ns = candidate.captured_at_ns
        window_ns = self._settings.window_s * 1e9
        chosen: list[Chosen] = []
        if camera.opened_ns is not None and not camera.last_ns < at_ns < camera.opened_ns + window_ns:
            chosen = self._close(camera)  # time that went back (a loop, a reconnect) closes a window as well
        if camera.opened_ns is None:
            camera.opened_ns = at_ns
        self._hold(camera, candidate)
        return chosen

    def flush(self, camera_id: str | None = None) -> list[Chosen]:
        """Close the open windows, of one camera or of all: at the end of a stream, or when the agent stops."""
        cameras = [self._cameras[camera_id]] if camera_id else list(self._cameras.values())
        return [choice for camera in cameras for choice in self._close(camera)]

    def adopt(self, space: str) -> list[Chosen]:
        """Another release looks from now on: its heads score on scales of their own, and ranks begin anew. With another
        backbone embeddings do not compare: open windows are closed, what was sent and what is normal is forgotten.

        Args:
            space: name of the backbone.
        """
        self._space = space
        for ranks in self._ranks:
            ranks.forget()
        others = (camera for camera in self._cameras.values() if camera.space not in ("", space))
        chosen = [choice for camera in others for choice in self._close(camera)]
        for name, camera in self._cameras.items():
            if camera.space not in ("", space):
                camera.sent.clear()
                self._normality.forget(name)
            camera.space = space
        return chosen

    def remember(self, camera_id: str) -> CameraMemory | None:
        """What should survive a restart; None before the camera's first look."""
        camera, normal = self._cameras[camera_id], self._normality.recall(camera_id)
        if normal is None:
            return None
        return CameraMemory(camera.space, camera.budget, tuple(camera.sent), normal)

    def restore(self, camera_id: str, memory: CameraMemory) -> None:
        """Go on where a camera was before the restart; to be called before its first frame."""
        if self._space and memory.space not in ("", self._space):
            return  # attached while another backbone runs: its embeddings do not compare
        camera = self._cameras[camera_id]
        camera.space, camera.budget = memory.space or self._space, memory.budget
        camera.sent.extend(memory.sent)
        self._normality.restore(camera_id, memory.normal)

    def ever_sent(self, camera_id: str) -> int:
        """How many frames of a camera were chosen since the start."""
        return self._cameras[camera_id].ever_sent

    def appraise(self, candidate: Candidate) -> Scores:
        """What a frame is worth, and why, among what was seen before it; then it is part of that.

        `offer` does this to every frame; it is here by itself for who ranks without sending.
        """
        ranks, value = self._rank(self._cameras[candidate.camera_id], candidate)
        return Scores(ranks["novel"], ranks["abnormal"], ranks["uncertain"], 0.0, value, candidate.doubt)

    def _rank(self, camera: _Camera, candidate: Candidate) -> tuple[dict[Aspect, float], float]:
        """Ranks by aspect, the mean where several rules speak of one, and the value."""
        embedding = candidate.embedding.astype(np.float64)
        gap_s = (candidate.captured_at_ns - camera.last_ns) / 1e9 if camera.last_ns else 0.0
        sight = Sight(candidate, self._normality.distance(candidate.camera_id, embedding))
        chance = SIZE * math.log(2) * min(max(gap_s, 0.0), GAP_S_MAX) / self._settings.normal_s / len(self._cameras)
        ranks: list[float] = []
        for rule, memory in zip(self._rules, self._ranks, strict=True):
            score = rule.score(sight)
            ranks.append(memory.rank(score))
            memory.remember(score, chance)
        self._normality.learn(candidate.camera_id, embedding, gap_s)
        camera.last_ns = candidate.captured_at_ns
        by_aspect: dict[Aspect, float] = {}
        for aspect in get_args(Aspect):
            own = [rank for rule, rank in zip(self._rules, ranks, strict=True) if rule.aspect == aspect]
            by_aspect[aspect] = sum(own) / len(own)
        return by_aspect, max(sum(ranks[: self._valued]) / self._valued, candidate.doubt)

    def _hold(self, camera: _Camera, candidate: Candidate) -> None:
        ranks, value = self._rank(camera, candidate)
        unit = candidate.embedding.astype(np.float64)
        unit /= max(float(np.linalg.norm(unit)), 1e-12)
        camera.held.append(_Held(candidate, unit, ranks, value))
        if len(camera.held) > HELD_MAX:
            del camera.held[min(range(len(camera.held)), key=lambda row: camera.held[row].value)]

    def _close(self, camera: _Camera) -> list[Chosen]:
        if camera.opened_ns is None:
            return []
        elapsed_s = (camera.last_ns - camera.opened_ns) / 1e9
        frame_s = elapsed_s / max(1, len(camera.held) - 1)
        earned = self._per_s * min(self._settings.window_s, elapsed_s + frame_s)
        camera.budget = min(camera.budget + earned, max(1.0, CARRY_WINDOWS * self._per_s * self._settings.window_s))
        held, camera.held, camera.opened_ns = camera.held, [], None
        count = min(int(camera.budget + 1e-9), len(held))
        chosen = self._cover(camera, held, count)
        camera.budget -= len(chosen)
        return chosen

    def _cover(self, camera: _Camera, held: list[_Held], count: int) -> list[Chosen]:
        """Greedy weighted facility location over the window, given what was sent before."""
        if not count:
            return []
        units = np.stack([item.unit for item in held])
        sent = np.stack(list(camera.sent)) if camera.sent else np.zeros((0, units.shape[1]))
        weights = 1.0 + VALUE_WEIGHT * np.array([item.value for item in held])
        coverage = Coverage(units, sent, weights, self._settings.similarity_max)
        chosen: list[Chosen] = []
        for _ in range(count):
            if not coverage.free.any():
                break
            if self._random.random() < self._settings.trickle:
                pick, reason = int(self._random.choice(np.flatnonzero(coverage.free).tolist())), "trickle"
            else:
                pick = coverage.best()
                reason = held[pick].reason
            item = held[pick]
            ranks = (item.ranks["novel"], item.ranks["abnormal"], item.ranks["uncertain"])
            scores = Scores(*ranks, float(coverage.redundancy[pick]), item.value, item.candidate.doubt)
            chosen.append(Chosen(item.candidate, scores, reason))
            camera.sent.append(item.unit)
            camera.ever_sent += 1
            coverage.take(pick)
        return chosen


def _is_finite(candidate: Candidate) -> bool:
    shares = (share for item in candidate.predictions for share in (*item.probabilities, item.novelty))
    return bool(np.isfinite(candidate.embedding).all()) and all(map(math.isfinite, shares))

"""Whether a detector is to be doubted on a frame: its own rules for hard samples. Pure.

Three signs, each 0..1; the largest counts, and selection ranks by it beside its own scores:

- *near the line*: a box scores close to the threshold, on either side of it: a coin decides whether it is reported;
- *unstable*: what was found comes and goes between looks that show the same scene;
- *disagreement*: the head of the scenario says normal where the detector sees what it should alarm about, or the
  other way round.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from common.manifest import DetectorLayer
from common.messages import Box, Prediction

MEMORY_LOOKS: Final = 5
"""Looks over which coming and going is judged: a second of video in Watch."""
STEADY_CHANGES: Final = 1
"""A thing that enters or leaves changes the count once; more changes within the memory are flicker."""
LABELS_MAX: Final = 64
"""Labels of a camera that are followed; a detector that names more at once is beyond doubt wrong."""


def near_the_line(score: float, score_min: float) -> float:
    """1 on the threshold, falling to 0 at half of it and, above, half way to certainty."""
    reach = score_min / 2 if score < score_min else (1 - score_min) / 2
    return max(0.0, 1 - abs(score - score_min) / reach) if reach > 0 else 0.0


@dataclass(slots=True)
class Doubts:
    """The doubts about one detector on one camera.

    Args:
        declared: the detector as the release names it.
        score_min: what counts as found.
        normal: the class of `declared.scenario` that needs no attention.
    """

    declared: DetectorLayer
    score_min: float
    normal: str = ""
    _counts: dict[str, deque[int]] = field(default_factory=dict)

    def judge(self, boxes: Sequence[Box], faint: Sequence[Box], predictions: Sequence[Prediction]) -> float:
        """The doubt of a look, 0..1; looks are judged in their order.

        Args:
            boxes: what was found.
            faint: what scored below the threshold, but not far.
        """
        return max(self._line(boxes, faint), self._unstable(boxes), self._disagreement(boxes, predictions))

    def _line(self, boxes: Sequence[Box], faint: Sequence[Box]) -> float:
        return max((near_the_line(box.score, self.score_min) for box in (*boxes, *faint)), default=0.0)

    def _unstable(self, boxes: Sequence[Box]) -> float:
        for label in {box.label for box in boxes}:
            if label not in self._counts and len(self._counts) < LABELS_MAX:
                self._counts[label] = deque([0], maxlen=MEMORY_LOOKS)
        worst = 0
        for label, counts in list(self._counts.items()):
            counts.append(sum(box.label == label for box in boxes))
            changes = sum(before != after for before, after in zip(counts, list(counts)[1:], strict=False))
            worst = max(worst, changes)
            if not any(counts):
                del self._counts[label]
        return max(0, worst - STEADY_CHANGES) / (MEMORY_LOOKS - 1 - STEADY_CHANGES)

    def _disagreement(self, boxes: Sequence[Box], predictions: Sequence[Prediction]) -> float:
        said = next((item for item in predictions if item.scenario == self.declared.scenario), None)
        if said is None or self.normal not in said.classes:
            return 0.0
        attention = 1 - said.probabilities[said.classes.index(self.normal)]
        seen = max((box.score for box in boxes if self.declared.raises(box.label)), default=0.0)
        return abs(attention - seen)

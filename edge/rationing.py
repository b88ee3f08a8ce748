"""How often cameras are looked at when the box is too small for all of them: by priority, and reversibly. Pure.

The sign of too small is a frame that was replaced in its slot before anybody looked at it, or more CPU than
`budget.cores`. Then the cameras of the
lowest priority are looked at half as often, a quarter, an eighth; if that is not enough, those of the next. When the
look loop has had idle time for a while, one step is taken back. The floor of each camera holds throughout.
"""

from collections.abc import Mapping
from typing import Final

STEPS: Final = 3
"""Halvings per priority: an eighth of five looks a second is still one in two seconds."""
DROPPED_MAX: Final = 0.02
"""Share of frames replaced unseen from which the box counts as too small; a rare hiccup is none."""
DROPPED_MIN: Final = 5
"""Frames replaced unseen in a period below which nothing follows: one late moment of the machine."""
BUSY_MAX: Final = 0.7
"""Share of its time that the look loop may be busy when a step is taken back: half as many looks again must fit."""
CALM_PERIODS: Final = 6
"""Periods without a drop before a step is taken back, so that it does not swing."""


class Rationing:
    """The share of its looks that each camera gets.

    Args:
        priorities: by camera; the lowest number gives way first.
    """

    def __init__(self, priorities: Mapping[str, int]) -> None:
        ranks = sorted(set(priorities.values()))
        self._rank = {name: ranks.index(priority) for name, priority in priorities.items()}
        self.level_max = STEPS * len(ranks)
        self.level = 0
        """Halvings so far; 0 is all that was asked for."""
        self._calm = 0

    def adjust(self, *, looked: int, dropped: int, busy: float, load: float = 0.0) -> bool:
        """A period has passed.

        Args:
            looked: frames that were looked at in it.
            dropped: frames that were replaced unseen.
            busy: share of the time that the look loop was not waiting for frames, 0..1.
            load: CPU that was used over what may be used; 0 where there is no limit.

        Returns:
            whether shares have changed.
        """
        before = self.level
        too_late = dropped >= DROPPED_MIN and dropped > DROPPED_MAX * (looked + dropped)
        if too_late or load > 1:
            self.level, self._calm = min(self.level + 1, self.level_max), 0
        elif max(busy, load) > BUSY_MAX:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm >= CALM_PERIODS and self.level:
                self.level, self._calm = self.level - 1, 0
        return self.level != before

    def share(self, camera_id: str) -> float:
        """Of the looks a camera asks for, 1 down to 1/8."""
        halvings = min(max(self.level - STEPS * self._rank[camera_id], 0), STEPS)
        return float(0.5**halvings)

"""What a run of the demo found out, as plain values; `report` and `screen` show it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SiteResult:
    """One site before the first round and after the last. Accuracies are balanced, 0..1; NaN where not measured."""

    site: str
    seen: bool
    """True: the first release was trained there."""
    before: float
    after: float
    labels: int
    samples: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round of learning and what became of its candidate."""

    run_id: str
    labels: int
    """Samples labelled so far, over all sites."""
    release_id: str
    """Empty: no release came of it."""
    gate: dict[str, Any]
    """As the centre recorded it: `passed`, and `comparisons` where they were kept."""
    per_site: dict[str, float]
    """Accuracy of what each site runs after the round."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A labelled sample, and why the edge chose it."""

    site: str
    camera: str
    reason: str
    label: str
    jpeg: bytes
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything that the summary and the report say."""

    sites: list[SiteResult]
    rounds: list[RoundSummary] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0

    def mean(self, moment: str, *, seen: bool) -> float:
        """Mean accuracy `before` or `after` over the seen or the unseen sites; NaN without any."""
        values = [value for s in self.sites if s.seen is seen and (value := getattr(s, moment)) == value]
        return sum(values) / len(values) if values else float("nan")

"""The oracle: a person who knows the truth, but is only ever shown samples that were uploaded.

It works like a person: reads the review queue of the console over HTTP, and posts labels there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

TIMEOUT_S = 20.0

Truth = Callable[[str, str, int, str], str | None]
"""(site, camera, captured_at_ns, scenario) -> class, or None where even the truth is ambiguous."""


@dataclass
class Oracle:
    """Labels what waits in the queue, up to a budget per site.

    Args:
        url: of the console.
        truth: looked up by where and when the sample was taken.
        budget_per_site: samples that may be labelled at each site, over all scenarios; None is without limit.
    """

    url: str
    truth: Truth
    budget_per_site: dict[str, int] | None = None
    given: dict[str, set[str]] = field(default_factory=dict)
    """Labelled sample ids by site."""

    def label_queue(self, scenarios: Sequence[str], limit: int = 200) -> int:
        """Label what the queue shows now, most valuable first; returns how many samples were labelled.

        Raises:
            httpx.HTTPError: the console does not answer.
        """
        before = sum(map(len, self.given.values()))
        with httpx.Client(base_url=self.url, timeout=TIMEOUT_S) as client:
            for scenario in scenarios:
                rows = client.get("/api/v1/queue", params={"scenario": scenario, "limit": limit})
                rows.raise_for_status()
                labels = [label for row in rows.json() if (label := self._label(row, scenario))]
                if labels:
                    client.post("/api/v1/labels", json=labels).raise_for_status()
        return sum(map(len, self.given.values())) - before

    def _label(self, row: dict[str, object], scenario: str) -> dict[str, str] | None:
        site, name = str(row["site_id"]), str(row["sample_id"])
        given = self.given.setdefault(site, set())
        if name not in given and self.budget_per_site is not None and len(given) >= self.budget_per_site.get(site, 0):
            return None
        truth = self.truth(site, str(row["camera_id"]), int(str(row["captured_at_ns"])), scenario)
        if truth is None:
            return None
        given.add(name)
        return {"sample_id": name, "scenario": scenario, "label": truth, "author": "oracle"}

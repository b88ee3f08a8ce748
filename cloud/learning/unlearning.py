"""A site or a gateway leaves what was learnt, as if it had never been there.

Its statistics go out of the kept sum by one subtraction, the shared head is solved anew, and what it contributed is
deleted. Its name goes on a list: it is not asked in rounds, and its samples are stored and shown but count no more, nor
do the pictures of a dataset that name it as their site. What runs at sites changes with the next release: the caller
starts a training run.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field

from cloud.learning.gathering import SENT, with_datasets
from cloud.learning.heads import HeadWeights, UnlearnableError
from cloud.learning.training import Trainer
from cloud.registry import Registry
from cloud.store import Store
from common.errors import OperatorError


@dataclass(slots=True)
class Unlearnt:
    """What went, and the heads without it."""

    name: str
    contributions: int = 0
    samples: int = 0
    """Labelled samples of gateways that no longer count, in contributions or at the centre, over all scenarios."""
    seconds: float = 0.0
    """Until the heads were solved."""
    anew: list[str] = field(default_factory=list)
    """Scenarios whose sum had to be made anew, because it was not the one of the last run."""
    heads: dict[str, HeadWeights] = field(default_factory=dict)
    """scenario -> shared head; one of which too little is left has none"""

    def summary(self) -> dict[str, object]:
        """As plain values, for the log and the command line."""
        return {
            "name": self.name,
            "contributions": self.contributions,
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "solved": sorted(self.heads),
            "summed_anew": self.anew,
        }


def unlearn(name: str, store: Store, registry: Registry, trainer: Trainer, author: str, now_ns: int) -> Unlearnt:
    """Take a site, or one gateway, out of everything that was learnt.

    Raises:
        OperatorError: the centre has never heard of it.
    """
    gathering = trainer.gathering
    gateways = gathering.gateways_of(name)
    if not gateways and name not in gathering.names_of_datasets():
        raise OperatorError(f"there is no site or gateway {name!r}", "Give a name as the fleet page shows it.")
    found = Unlearnt(name)
    began_s = time.perf_counter()
    backbone, _ = registry.backbone()
    active, scenarios = registry.active(), trainer.scenarios()
    gone = {s: gathering.brought_by(gateways, s, backbone.hash, classes) for s, classes in scenarios.items()}
    store.exclude(name, author, now_ns)  # before anything is deleted: a crash after it leaves the name out as well
    for scenario, classes in scenarios.items():
        found.samples += sum(int(part.packed.total) for part in gone[scenario].values())
        found.contributions += sum(key.startswith(SENT) for key in gone[scenario])
        rest = gathering.ledger.without(scenario, backbone.hash, gone[scenario])
        if rest is None:
            found.anew.append(scenario)
            shared = gathering.evidence(scenario, classes, backbone.hash, active).shared
        else:
            brought = gathering.within_bound(rest.over(classes), scenario, backbone.hash, classes)
            shared = with_datasets(brought, gathering.datasets(scenario, classes, backbone.hash))
        with suppress(UnlearnableError):
            found.heads[scenario] = trainer.rules.solve_shared(shared)
    sums = [n for scenario in scenarios for n in gathering.sums_with(gateways, scenario, backbone.hash)]
    store.delete_contributions([*gateways, *sums])
    found.seconds = time.perf_counter() - began_s
    store.audit(author, "unlearn", found.summary(), now_ns)
    return found

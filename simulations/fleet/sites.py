"""What a batch of virtual sites does in a round, all of them at once. Pure: no clock, no I/O, no state of its own.

All that is random is a hash of (seed, site, round, number), so a site does the same in any batch. Its frames are scored
by the very head of the round (`cloud.learning.heads`), its labels become `common.statistics.Statistics`, and because
statistics add, those of a whole batch are computed as one: that is where the speed is.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.learning.heads import HeadWeights
from common.ids import SAMPLE_ID_BYTES
from common.packing import pack, packed_bytes
from common.statistics import Array, Statistics
from simulations.fleet.pool import STEP, Pool, on_grid
from simulations.fleet.scenario import Fleet

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]
NONE = -1
"""In place of a row's number: nothing was chosen."""
POISON_SCALE = 10.0
HOME_ROWS = 64
"""Held-out rows that a site's own head is measured on."""
ENVELOPE_BYTES = 1_000
"""Of a reply beside its arrays and ids: 691 to 1,033 were measured."""
_OPENED = STEP**2  # the grid of exact second moments
_FRAME, _ORDER, _LINK, _TRAIT, _HOME = range(5)
_SCORE_DIGITS = 6  # matrix products round by shape in the last digits; scores must not depend on the batch


@dataclass(frozen=True, slots=True)
class Memory:
    """What a batch of sites remembers: chosen rows (s, rounds, budget), and up to which round it has sent (s,)."""

    chosen: Numbers
    sent: Numbers


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a batch sent in a round."""

    statistics: Statistics | None
    memory: Memory
    reporting: int
    """Sites that had a link and anything to tell."""
    labels: int
    bytes_up: int


def uniform(seed: int, sites: Numbers, moment: int, purpose: int, count: int) -> Array:
    """Numbers in [0, 1), (s, count), that depend on nothing but the arguments. SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z: Hashes = sites.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
        z = z + np.uint64((seed * 1_000_003 + moment * 8_191 + purpose) % 2**63) * np.uint64(0xD1B54A32D192ED03)
        z = z + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z = z ^ (z >> np.uint64(31))
    fractions: Array = (z >> np.uint64(11)).astype(np.float64)
    return fractions * 2.0**-53


def mixtures(fleet: Fleet, sites: Numbers, classes: int) -> Array:
    """Each site's shares of the classes (s, c): Dirichlet(alpha)."""
    draws = [np.random.default_rng([fleet.seed, int(site), 11]).dirichlet([fleet.alpha] * classes) for site in sites]
    return np.array(draws)


def styles(fleet: Fleet, sites: Numbers, dimensions: int) -> Array:
    """Each site's shift (s, d), on the grid, of length `style` per dimension."""
    plain = uniform(fleet.seed, sites, 0, _TRAIT, dimensions) - 0.5
    shift: Array = np.round(plain * np.sqrt(12.0) * fleet.style / STEP) * STEP
    return shift


def is_poisoned(fleet: Fleet, sites: Numbers) -> NDArray[np.bool_]:
    """Which of them lie."""
    lies: NDArray[np.bool_] = uniform(fleet.seed, sites, 1, _TRAIT, 1)[:, 0] < fleet.poisoned
    return lies


def arrived(fleet: Fleet, moment: int, classes: int) -> int:
    """How many classes exist in a round."""
    phase = moment * fleet.phases // fleet.rounds + 1
    return max(2, -(-classes * phase // fleet.phases))


def look(fleet: Fleet, pool: Pool, sites: Numbers, moment: int) -> Numbers:
    """The frames that each site sees in a round: numbers of the pool's rows (s, frames)."""
    return _seen(fleet, pool.by_class(), sites, moment, (_FRAME, fleet.frames))


def at_home(fleet: Fleet, pool: Pool, sites: Numbers, moment: int) -> Numbers:
    """Held-out rows in each site's own mixture of classes (s, `HOME_ROWS`): what its cameras will show it."""
    held_out = [np.flatnonzero((pool.labels == k) & pool.held_out) for k in range(len(pool.classes))]
    return _seen(fleet, held_out, sites, moment, (_HOME, HOME_ROWS))


def _seen(
    fleet: Fleet, by_class: list[Numbers], sites: Numbers, moment: int, purpose_and_count: tuple[int, int]
) -> Numbers:
    """Rows that sites see, of those given per class, in their mixtures of the classes that have arrived."""
    purpose, count = purpose_and_count
    present = arrived(fleet, moment, len(by_class))
    shares = mixtures(fleet, sites, len(by_class))[:, :present] + 1e-9
    edges = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
    draws = uniform(fleet.seed, sites, moment, purpose, 2 * count).reshape(len(sites), count, 2)
    kinds = np.minimum((draws[:, :, :1] > edges[:, None, :]).sum(axis=2), present - 1)
    frames = np.zeros(kinds.shape, np.int64)
    for k, rows in enumerate(by_class[:present]):
        here = kinds == k
        frames[here] = rows[(draws[:, :, 1][here] * len(rows)).astype(np.int64)]
    return frames


def choose(fleet: Fleet, rows: Array, sites: Numbers, moment: int, head: HeadWeights | None) -> Numbers:
    """Places (s, budget) of the frames to keep, of rows (s, frames, d): the best by score, ties by chance."""
    chance = uniform(fleet.seed, sites, moment, _ORDER, fleet.frames)
    score = np.zeros_like(chance)
    if head is not None and fleet.choice != "random":
        flat = rows.reshape(-1, rows.shape[2])
        if fleet.choice == "novel":
            score = head.novelty(flat).reshape(chance.shape)
        else:
            best = np.sort(head.logits(flat), axis=1)[:, -2:]
            score = -(best[:, 1] - best[:, 0]).reshape(chance.shape)
    order = np.lexsort((chance, -np.round(score, _SCORE_DIGITS)), axis=1)
    return order[:, : fleet.budget]


def step(
    fleet: Fleet, pool: Pool, sites: Numbers, moment: int, head: HeadWeights | None, memory: Memory
) -> Contribution:
    """One round of a batch: look, choose, and send the statistics of whatever has its label by now."""
    frames = look(fleet, pool, sites, moment)
    shift = styles(fleet, sites, pool.rows.shape[1])
    places = choose(fleet, on_grid(pool.rows[frames] + shift[:, None, :]), sites, moment, head)
    chosen = memory.chosen.copy()
    chosen[:, moment] = np.take_along_axis(frames, places, axis=1)
    linked = uniform(fleet.seed, sites, moment, _LINK, 1)[:, 0] >= fleet.outage
    ready = moment - fleet.label_delay  # the newest round whose labels are there
    rounds = np.arange(chosen.shape[1])
    due = linked[:, None] & (rounds > memory.sent[:, None]) & (rounds <= ready)
    which, when, place = np.nonzero(due[:, :, None] & (chosen != NONE))
    sent = np.where(linked & (ready >= 0), np.maximum(memory.sent, ready), memory.sent)
    after = Memory(chosen, sent)
    if not len(which):
        statistics = None
    elif fleet.statistics_bytes_max:
        statistics = _exchanged(fleet, pool, sites, np.unique(which), memory, after)
    else:
        statistics = _statistics(fleet, pool, sites, which, chosen[which, when, place], shift)
    reporting, bytes_up = _on_the_wire(fleet, pool, after, linked)
    return Contribution(statistics, after, reporting, len(which), bytes_up)


def _on_the_wire(fleet: Fleet, pool: Pool, memory: Memory, linked: NDArray[np.bool_]) -> tuple[int, int]:
    """How many sites answer the round, and with how many bytes: each with the statistics of all that it has."""
    which, rows = _labelled(memory)
    which, rows = which[linked[which]], rows[linked[which]]
    samples = np.bincount(which, minlength=len(linked))
    seen = np.zeros((len(linked), len(pool.classes)), bool)
    seen[which, pool.labels[rows]] = True
    kinds = Counter(zip(samples.tolist(), seen.sum(axis=1).tolist(), strict=True))
    del kinds[0, 0]
    bound, dimension = fleet.statistics_bytes_max, pool.rows.shape[1]
    return kinds.total(), sum(
        count * (packed_bytes(n, classes, dimension, bound) + n * SAMPLE_ID_BYTES + ENVELOPE_BYTES)
        for (n, classes), count in kinds.items()
    )


def _labelled(memory: Memory) -> tuple[Numbers, Numbers]:
    """What sites have sent so far, all rounds together: places of sites in the batch, and rows, one for each label."""
    rounds = np.arange(memory.chosen.shape[1])
    there = (rounds[None, :, None] <= memory.sent[:, None, None]) & (memory.chosen != NONE)
    which, when, place = np.nonzero(there)
    return which, memory.chosen[which, when, place]


def _exchanged(fleet: Fleet, pool: Pool, sites: Numbers, renewed: Numbers, before: Memory, after: Memory) -> Statistics:
    """What changes in the sum when these sites' statistics, which lose something on the link, replace the last ones."""
    total = Statistics.empty(pool.classes, pool.rows.shape[1])
    for place in renewed:
        one = slice(place, place + 1)
        new, old = (
            sent_by(fleet, pool, sites[one], Memory(memory.chosen[one], memory.sent[one]))[0]
            for memory in (after, before)
        )
        total = total + new - old
    return total


def sent_by(fleet: Fleet, pool: Pool, sites: Numbers, memory: Memory) -> list[Statistics]:
    """What each of these sites has sent so far, all rounds together."""
    shift = styles(fleet, sites, pool.rows.shape[1])
    owners, rows = _labelled(memory)
    found = []
    for place in range(len(sites)):
        own, one = rows[owners == place], slice(place, place + 1)
        if fleet.statistics_bytes_max and len(own):
            found.append(_lossy(fleet, pool, sites[one], own, shift[place]))
        else:
            found.append(_statistics(fleet, pool, sites[one], np.zeros(len(own), np.int64), own, shift[one]))
    return found


def _lossy(fleet: Fleet, pool: Pool, site: Numbers, rows: Numbers, shift: Array) -> Statistics:
    """A site's statistics as they are opened at the centre, on a grid on which their sums are exact too."""
    labels, x = pool.labels[rows], on_grid(pool.rows[rows] + shift)
    if is_poisoned(fleet, site)[0]:
        if fleet.poison == "flip":
            labels = (labels + 1) % len(pool.classes)
        else:
            x = x * POISON_SCALE
    packed, _ = pack(pool.classes, x, [pool.classes[k] for k in labels], fleet.statistics_bytes_max)
    opened = packed.over(pool.classes).statistics()
    return Statistics(
        pool.classes,
        opened.counts,
        np.round(opened.sums / _OPENED) * _OPENED,
        np.round(opened.moment / _OPENED) * _OPENED,
    )


def _statistics(fleet: Fleet, pool: Pool, sites: Numbers, which: Numbers, rows: Numbers, shift: Array) -> Statistics:
    """The sum of the statistics of all sites of a batch, liars included."""
    lies = is_poisoned(fleet, sites)[which]
    labels = pool.labels[rows]
    x = on_grid(pool.rows[rows] + shift[which])
    names = pool.classes
    if fleet.poison == "flip":
        labels = np.where(lies, (labels + 1) % len(names), labels)
        return Statistics.of(names, x, [names[k] for k in labels])
    honest = Statistics.of(names, x[~lies], [names[k] for k in labels[~lies]])
    lied = Statistics.of(names, x[lies], [names[k] for k in labels[lies]])
    return honest + Statistics(names, lied.counts, lied.sums * POISON_SCALE, lied.moment * POISON_SCALE**2)

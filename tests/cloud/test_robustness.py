"""Sites that lie are named; sites that merely look like nowhere else are not."""

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.learning.heads import solve_lda
from cloud.learning.robustness import COSTLY_MAX, Judgement, Suspicion, Trusted, judge
from common.statistics import Statistics

CLASSES = ("normal", "tear", "wear", "hole")
DIMENSION = 24
CENTRES = np.random.default_rng(7).normal(0, 2, (len(CLASSES), DIMENSION)) + 4


def pictures(seed: int, shift: float = 0.0, n: int = 24) -> tuple[np.ndarray, list[str]]:
    """Embeddings of a site with two classes, all moved by `shift` in a direction of the site's own."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(CLASSES), 2, replace=False)[rng.integers(0, 2, n)]
    offset = rng.normal(0, 1, DIMENSION)
    x = CENTRES[truth] + rng.normal(0, 1, (n, DIMENSION)) + shift * offset / np.linalg.norm(offset)
    return x, [CLASSES[i] for i in truth]


def site(seed: int, shift: float = 0.0) -> Statistics:
    x, labels = pictures(seed, shift)
    return Statistics.of(CLASSES, x, labels)


def flipped(seed: int) -> Statistics:
    x, labels = pictures(seed)
    return Statistics.of(CLASSES, x, [CLASSES[(CLASSES.index(name) + 1) % len(CLASSES)] for name in labels])


def trusted() -> Trusted:
    x, labels = pictures(900, n=40)
    return Trusted(Statistics.empty(CLASSES, DIMENSION), x, tuple(labels))


def named(sites: dict[str, Statistics]) -> dict[str, Suspicion]:
    return {suspect.gateway: suspect for suspect in judge(sites, trusted()).suspects}


def honest(count: int = 16) -> dict[str, Statistics]:
    return {f"honest-{seed}": site(seed) for seed in range(count)}


def test_honest_sites_are_left_alone() -> None:
    assert named(honest()) == {}


def test_flipped_labels_are_named_even_when_the_liars_agree() -> None:
    found = named(honest() | {f"liar-{seed}": flipped(seed) for seed in range(100, 104)})
    assert set(found) == {f"liar-{seed}" for seed in range(100, 104)}
    assert all(suspect.reason.startswith("labels:") and suspect.samples == 24 for suspect in found.values())


@pytest.mark.parametrize("factor", [0.3, 3.0, 10.0])
def test_scaled_statistics_are_named(factor: float) -> None:
    own = site(50)
    scaled = Statistics(CLASSES, own.counts, own.sums * factor, own.moment * factor**2)
    found = named(honest() | {"liar": scaled})
    assert set(found) == {"liar"}
    assert "scaled" in found["liar"].reason


def test_a_site_that_looks_like_nowhere_else_is_not_a_liar() -> None:
    assert named(honest() | {"odd": site(60, shift=9.0)}) == {}


def test_a_class_that_only_one_site_has_is_not_judged() -> None:
    classes = (*CLASSES, "fire")
    x = np.random.default_rng(3).normal(4, 1, (12, DIMENSION))
    sites = {name: part.over(classes) for name, part in honest().items()}
    sites["new"] = Statistics.of(classes, x, ["fire"] * 12)
    assert judge(sites, Trusted(Statistics.empty(classes, DIMENSION), x[:0], ())) == Judgement()


def trusted_of_all_classes(count: int) -> Trusted:
    rng = np.random.default_rng(900)
    truth = rng.integers(0, len(CLASSES), count)
    x = CENTRES[truth] + rng.normal(0, 2.5, (count, DIMENSION))
    return Trusted(Statistics.empty(CLASSES, DIMENSION), x, tuple(CLASSES[k] for k in truth))


def test_what_each_believed_site_costs_is_what_leaving_it_out_wins() -> None:
    """Three sites have no majority, so the liar is believed; the trusted pictures say what that costs."""
    sites = {name: styled(seed, classes=4, style=0.1) for seed, name in enumerate(("north", "south"))}
    sites["liar"] = styled(100, (1, 2, 3, 0), classes=4, style=0.1) * 1.5
    held = trusted_of_all_classes(60)

    def points(parts: dict[str, Statistics]) -> float:
        total = reduce(add, parts.values())
        right = [a == b for a, b in zip(solve_lda(total, 0.3).predict(held.embeddings), held.labels, strict=True)]
        return 100 * float(np.mean(right))

    wins = {name: points({n: p for n, p in sites.items() if n != name}) - points(sites) for name in sites}
    found = judge(sites, held)
    assert found.suspects == ()
    (liar,) = found.costly
    assert (liar.gateway, liar.samples) == ("liar", 60)
    assert liar.influence == pytest.approx(wins["liar"], abs=0.01)
    assert liar.influence > 5
    assert max(wins["north"], wins["south"]) <= 0


def test_of_many_that_cost_the_worst_are_told() -> None:
    """Each calls tears what lies half-way to normal: nothing that could be named, and together it costs."""
    rng, sites = np.random.default_rng(3), {}
    for number in range(3 * COSTLY_MAX):
        truth = rng.integers(0, len(CLASSES), 40)
        x = CENTRES[truth] + rng.normal(0, 1, (40, DIMENSION))
        x += 0.5 * (CENTRES[0] - CENTRES[1]) * (truth == 1)[:, None]
        sites[f"site-{number:02}"] = Statistics.of(CLASSES, x, [CLASSES[k] for k in truth])
    found = judge(sites, trusted_of_all_classes(2000))
    influences = [gateway.influence for gateway in found.costly]
    assert len(influences) == COSTLY_MAX
    assert influences == sorted(influences, reverse=True)
    assert min(influences) > 0


def test_two_sites_are_no_majority() -> None:
    assert named({"a": site(1), "b": flipped(2)}) == {}


# --- styles -----------------------------------------------------------------------------------


def styled(seed: int, order: tuple[int, ...] = (0, 1, 2, 3), classes: int = 2, style: float = 3.0) -> Statistics:
    """A site whose style moves everything as far as classes lie apart, with its labels put in another order."""
    rng = np.random.default_rng(seed)
    mine = rng.choice(len(CLASSES), classes, replace=False)
    truth = mine[rng.integers(0, classes, 40)]
    x = CENTRES[truth] + rng.normal(0, 1, (40, DIMENSION)) + rng.normal(0, style, DIMENSION)
    return Statistics.of(CLASSES, x, [CLASSES[order[i]] for i in truth])


def test_flipped_labels_are_named_where_every_site_has_a_style_of_its_own() -> None:
    sites = {f"honest-{seed}": styled(seed, classes=2 + seed % 3) for seed in range(24)}
    assert named(sites) == {}
    liars = {f"liar-{seed}": styled(seed, (1, 2, 3, 0), 2 + seed % 2) for seed in range(100, 106)}
    assert set(named(sites | liars)) == set(liars)


def test_of_one_class_in_a_strong_style_nothing_is_said() -> None:
    sites = {f"honest-{seed}": styled(seed, style=8.0) for seed in range(24)}
    assert named(sites | {"one": styled(200, (1, 2, 3, 0), classes=1, style=8.0)}) == {}


def test_one_odd_class_beside_an_ordinary_one_is_no_lie() -> None:
    """Its tear looks a good deal like wear elsewhere; its normal is normal."""
    rng = np.random.default_rng(5)
    sites = {f"honest-{seed}": site(seed, shift=1.0) for seed in range(24)}
    x = np.concatenate(
        [CENTRES[0] + rng.normal(0, 1, (20, DIMENSION)), CENTRES[1:3].mean(0) + rng.normal(0, 1, (20, DIMENSION))]
    )
    odd = Statistics.of(CLASSES, x, ["normal"] * 20 + ["tear"] * 20)
    assert named(sites | {"odd": odd}) == {}


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_who_is_accused_does_not_hang_on_the_order_of_sites(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = int(rng.integers(0, 10_000))
    sites = {f"honest-{n}": styled(start + n, classes=int(rng.integers(1, 4))) for n in range(12)}
    sites |= {f"liar-{n}": styled(start + 100 + n, (1, 2, 3, 0)) for n in range(3)}
    shuffled = {name: sites[name] for name in rng.permutation(sorted(sites)).tolist()}
    assert set(named(sites)) == set(named(shuffled))

"""The gate: what it stops, and what it lets pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.learning.candidates import Evidence, Labelled, Rules, make_candidates
from cloud.learning.gates import (
    Verdict,
    balanced_accuracy,
    choose_head,
    compare,
    compare_classes,
    compare_moves,
    mcnemar_p,
    paired_interval,
    pool_undecided,
)
from cloud.learning.heads import solve_lda
from common.manifest import SHARED
from common.statistics import Statistics

RULES = Rules(shrinkage=0.1, personal_weight=20, personal_labels_min=4, tolerance=0.02)
CLASSES = ("normal", "tear")


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_present() -> None:
    assert balanced_accuracy(["a", "a", "a", "b"], ["a", "a", "a", "a"]) == pytest.approx(0.5)


def test_a_clear_drop_fails_and_a_single_flip_does_not() -> None:
    truth, right, wrong = ["normal"] * 20 + ["tear"] * 20, ["normal"] * 20 + ["tear"] * 20, ["normal"] * 40
    assert not compare("gold", truth, right, wrong, 0.02).passed
    one_flip = [*right[:-1], "normal"]
    assert compare("gold", truth, right, one_flip, 0.02).passed
    assert compare("gold", truth, wrong, right, 0.02).passed


def test_a_class_forgotten_behind_a_good_mean_is_found() -> None:
    truth = ["normal"] * 500 + ["tear"] * 10
    running, candidate = truth, ["normal"] * 510
    failed = [c.name for c in compare_classes("gold", truth, running, candidate, 0.02) if not c.passed]
    assert "gold/tear" in failed


def test_few_samples_are_undecided_and_many_that_did_not_change_are_held() -> None:
    assert compare("a", ["tear"], ["tear"], ["tear"], 0.02).verdict is Verdict.UNDECIDED
    assert compare("a", [], [], [], 0.02).verdict is Verdict.UNDECIDED
    assert compare("a", ["tear"] * 200, ["tear"] * 200, ["tear"] * 200, 0.02).verdict is Verdict.HELD
    lost = compare("a", ["tear"] * 3, ["tear"] * 3, ["normal"] * 3, 0.02)
    assert (lost.verdict, lost.gained, lost.lost) == (Verdict.WORSE, 0, 3)
    assert lost.high < 0


def test_a_loss_cannot_hide_in_many_small_classes() -> None:
    truth = [f"class-{number}" for number in range(8) for _ in range(2)]
    candidate = [name if row % 2 else "normal" for row, name in enumerate(truth)]
    found = {c.name: c for c in compare_classes("gold", truth, truth, candidate, 0.02)}
    assert all(found[f"gold/class-{n}"].verdict is Verdict.UNDECIDED for n in range(8))
    assert found["gold/undecided"].verdict is Verdict.WORSE
    assert found["gold/undecided"].samples == 16
    assert not pool_undecided("sites", [found["gold/class-1"]], 0.02), "one alone is what it is"


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 200))
def test_the_interval_holds_the_change_and_shrinks_with_samples(gained: int, lost: int, same: int) -> None:
    samples = gained + lost + same
    low, high = paired_interval(gained, lost, samples)
    assert -1 <= low <= high <= 1
    if samples:
        more = paired_interval(10 * gained, 10 * lost, 10 * samples)
        assert more[1] - more[0] < high - low
    mirrored = paired_interval(lost, gained, samples)
    assert mirrored == pytest.approx((-high, -low))


@pytest.mark.parametrize(("samples", "share"), [(5, 0.3), (40, 0.1), (400, 0.02)])
def test_equal_heads_are_called_worse_no_more_often_than_promised(samples: int, share: float) -> None:
    rng = np.random.default_rng(samples)
    stopped = 0
    for _ in range(400):
        flips = rng.random((2, samples)) < share
        running, candidate = (["normal" if flip else "tear" for flip in row] for row in flips)
        stopped += not compare("a", ["tear"] * samples, running, candidate, 0.0).passed
    assert stopped / 400 <= 0.08  # one in twenty, and the chance of 400 trials


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_a_probability_that_falls_with_more_losses(better: int, worse: int) -> None:
    assert 0 < mcnemar_p(better, worse) <= 1
    assert mcnemar_p(better, worse + 1) <= mcnemar_p(better, worse)


def test_a_site_that_would_lose_keeps_its_old_head() -> None:
    truth = ["tear"] * 6
    right, wrong = ["tear"] * 6, ["normal"] * 6
    assert choose_head("s", truth, right, wrong, wrong) == "kept"
    assert choose_head("s", truth, wrong, right, None) == "shared"
    assert choose_head("s", truth, wrong, wrong, right) == "personal"
    assert choose_head("s", truth, wrong, right, wrong) == "shared"


def labelled(x: np.ndarray, labels: list[str]) -> Labelled:
    return Labelled(tuple(bytes([i // 256, i % 256]) for i in range(len(x))), x.astype(np.float32), tuple(labels))


def site(seed: int, shift: float, n: int = 40, flip: bool = False) -> Labelled:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    x = rng.normal(0, 0.4, (n, 8))
    x[:, 0] += 2.0 * truth + shift
    x[:, 1] += shift
    names = [CLASSES[1 - t if flip else t] for t in truth]
    return labelled(x, names)


def evidence(sites: dict[str, Labelled], running: bool = True) -> Evidence:
    base, gold = site(1, 0.0, 200), site(2, 0.0, 100)
    statistics = Statistics.of(CLASSES, base.embeddings, base.labels)
    by_site = {name: Statistics.of(CLASSES, own.embeddings, own.labels) for name, own in sites.items()}
    heads = {SHARED: solve_lda(statistics, 0.1)} if running else {}
    for part in by_site.values():
        statistics = statistics + part
    return Evidence(CLASSES, statistics, by_site, sites, gold, heads)


def test_a_site_that_looks_different_gets_a_personal_head_that_wins() -> None:
    far = site(3, 3.0)
    made = make_candidates(evidence({"far": far}), RULES)
    assert made.gate.passed
    assert made.gate.sites == {"far": "personal"}
    unseen = site(4, 3.0, 200)
    personal = balanced_accuracy(unseen.labels, made.heads["far"].predict(unseen.embeddings))
    start = balanced_accuracy(unseen.labels, evidence({}).running[SHARED].predict(unseen.embeddings))
    assert personal > 0.95
    assert start < 0.7


def test_sites_with_flipped_labels_that_would_spoil_the_shared_head_are_stopped_by_the_gold_set() -> None:
    poison = {f"bad-{i}": site(10 + i, 0.0, 150, flip=True) for i in range(3)}
    made = make_candidates(evidence(poison), RULES)
    assert not made.gate.passed
    assert any(c.name == "gold" and not c.passed for c in made.gate.comparisons)


def test_too_few_labels_make_no_personal_head() -> None:
    made = make_candidates(evidence({"small": site(5, 3.0, 3)}), RULES)
    assert "small" not in made.heads


def test_the_first_release_has_nothing_to_be_compared_with_and_passes() -> None:
    made = make_candidates(evidence({}, running=False), RULES)
    assert made.gate.passed
    assert list(made.heads) == [SHARED]


def test_moves_that_the_labels_call_right_explain_that_a_class_is_named_less() -> None:
    truth, running = ["wear"] * 8 + ["tear"] * 2, ["tear"] * 10
    better = compare_moves(truth, running, ["wear"] * 8 + ["tear"] * 2)["tear"]
    assert (better.named, better.rightly, better.wrongly) == (10, 8, 0)
    assert better.explained == pytest.approx(8 / 12)
    lost = compare_moves(["tear"] * 10, running, ["wear"] * 10)["tear"]
    assert lost.explained == 0.0

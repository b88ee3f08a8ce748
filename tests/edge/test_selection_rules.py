"""The contract of a selection rule, run over every one there is; and what each is for."""

import math
from importlib.metadata import EntryPoint, EntryPoints
from typing import ClassVar, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OperatorError
from common.messages import Prediction
from edge.selection import Candidate, Rule, Selector, Sight
from edge.selection import rules as rules_module
from edge.selection.rules import RULES, Aspect, SednaCrossEntropy, SednaIBT, SednaThreshold, open_rule
from edge.settings import SelectionSettings


class Brightest:
    """A user's own rule: the first number of the embedding."""

    aspect: ClassVar[Aspect] = "abnormal"

    def score(self, sight: Sight) -> float:
        return float(sight.candidate.embedding[0])


def sight(*shares: tuple[float, ...], novelty: float = 1.0, distance: float = 4.0) -> Sight:
    predictions = tuple(
        Prediction(f"scenario-{number}", tuple(f"class-{place}" for place in range(len(row))), row, novelty)
        for number, row in enumerate(shares)
    )
    return Sight(Candidate("belt", 1, np.ones(8, np.float32), predictions, None), distance)


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    """Whatever heads may say: none, one class, certainty to the last bit, forty scenarios."""
    rows = []
    for size in draw(st.lists(st.integers(1, 6), max_size=5)):
        odds = np.array(
            draw(st.lists(st.sampled_from([0.0, 1e-45, 1e-9, 0.2, 1.0, 7.0]), min_size=size, max_size=size))
        )
        rows.append(tuple((odds / odds.sum()).tolist()) if odds.sum() > 0 else (1.0,) + (0.0,) * (size - 1))
    return sight(*rows, novelty=draw(st.floats(-1e6, 1e6)), distance=draw(st.floats(0, 1e12)))


@pytest.fixture(params=[*sorted(RULES), "a user's own"])
def rule(request: pytest.FixtureRequest) -> Rule:
    return Brightest() if request.param == "a user's own" else open_rule(request.param)


@given(seen=sights())
def check_scores(rule: Rule, seen: Sight) -> None:
    score = rule.score(seen)
    assert isinstance(score, float)
    assert math.isfinite(score)
    assert rule.score(seen) == score


def test_a_score_is_finite_and_repeatable_whatever_the_heads_say(rule: Rule) -> None:
    check_scores(rule)


def test_a_score_is_of_the_frame_alone(rule: Rule) -> None:
    first, other = sight((0.5, 0.5)), sight((0.9, 0.1), (0.2, 0.8), novelty=7.0, distance=90.0)
    before = rule.score(first)
    rule.score(other)
    assert rule.score(first) == before


def test_a_rule_says_what_it_speaks_of_and_explains_itself(rule: Rule) -> None:
    assert rule.aspect in get_args(Aspect)
    assert (type(rule).__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(name for name, rule in RULES.items() if rule.aspect == "uncertain"))
def test_an_uncertain_frame_scores_at_least_as_high_as_a_certain_one(name: str) -> None:
    rule = open_rule(name)
    torn, sure = rule.score(sight((0.34, 0.33, 0.33))), rule.score(sight((0.98, 0.01, 0.01)))
    assert torn > sure


@pytest.mark.parametrize(
    ("name", "higher", "lower"),
    [
        ("unexplained", sight((0.4, 0.3, 0.3)), sight((0.998, 0.001, 0.001))),
        ("unexplained", sight((0.7, 0.2, 0.1), distance=9.0), sight((0.7, 0.2, 0.1), distance=4.0)),
        ("relative-mahalanobis", sight((0.5, 0.5), novelty=3.0), sight((0.5, 0.5), novelty=-3.0)),
        ("abnormal", sight(distance=9.0), sight(distance=4.0)),
        ("margin", sight((0.5, 0.5), (0.9, 0.1)), sight((0.9, 0.1), (0.9, 0.1))),
    ],
)
def test_what_a_rule_prefers(name: str, higher: Sight, lower: Sight) -> None:
    assert open_rule(name).score(higher) > open_rule(name).score(lower)


def test_the_rules_of_sedna_judge_as_sedna_does() -> None:
    for top in np.linspace(0.05, 1.0, 39).tolist():
        shares = (top, 1 - top)
        confidence = max(shares)
        assert SednaThreshold(0.7).score(sight(shares)) == (confidence < 0.7)
        assert SednaIBT(0.9, 0.9).score(sight(shares)) == (confidence <= 0.9)
        certainty = 1 + sum(share * math.log(share) for share in shares if share) / math.log(2)
        assert SednaCrossEntropy(0.5).score(sight(shares)) == (certainty < 0.5)
    # two predictions of three must be sure before image-box-thresholds lets a frame go at .5
    assert SednaIBT(0.5, 0.5).score(sight((0.4, 0.3, 0.3), (0.9, 0.1), (0.9, 0.1))) == 0.0
    assert SednaIBT(0.5, 0.5).score(sight((0.4, 0.3, 0.3), (0.4, 0.3, 0.3), (0.9, 0.1))) == 1.0


def test_no_prediction_at_all_is_never_hard_for_sedna() -> None:
    assert [rule.score(sight()) for rule in (SednaThreshold(), SednaCrossEntropy(), SednaIBT())] == [0.0, 0.0, 0.0]


def test_an_installed_rule_is_found_by_its_name_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("brightest", f"{__name__}:Brightest", rules_module.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Brightest)
    monkeypatch.setattr(rules_module, "entry_points", lambda group: EntryPoints([point]))
    selector = Selector(SelectionSettings(rules=("brightest",)), ["belt"])
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(300, 8)).astype(np.float32)
    values = [
        selector.appraise(Candidate("belt", number * 10**9, row, (), None)).value
        for number, row in enumerate(embeddings)
    ]
    assert np.corrcoef(values[50:], embeddings[50:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("broken", [int, dict, None])
def test_what_is_no_rule_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch, broken: object) -> None:
    point = EntryPoint("broken", "nowhere:Nothing", rules_module.GROUP)
    if broken is not None:
        monkeypatch.setattr(EntryPoint, "load", lambda self: broken)
    monkeypatch.setattr(rules_module, "entry_points", lambda group: EntryPoints([point]))
    with pytest.raises(OperatorError, match=r"broken.*docs/edge\.md"):
        open_rule("broken")


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(OperatorError, match=r"no rule 'magic'.*unexplained.*sedna-ibt"):
        Selector(SelectionSettings(rules=("magic",)), ["belt"])

"""Plans: who comes first, and when a site may be touched."""

from hypothesis import given
from hypothesis import strategies as st

from cloud.rollout.plan import EVERYONE, STAGES, Plan, Wave, Window, in_flight_max, in_window, scaled, stratified

HOUR_NS = 3600 * 10**9


def test_a_tiny_fleet_has_a_canary_of_one_and_then_all() -> None:
    assert [wave.target(4) for wave in scaled(STAGES, 4)] == [1, EVERYONE]
    assert [wave.target(12_000) for wave in scaled(STAGES, 12_000)] == [1, 5, 30, 150, 750, EVERYONE]
    assert len(scaled(STAGES, 1)) == 1


def test_a_wave_asks_for_a_number_or_a_share() -> None:
    assert Wave(gateways=5, share=0.01).target(12_000) == 120
    assert Wave(gateways=5, share=0.01).target(100) == 5
    assert Wave().target(10) == EVERYONE
    assert len(scaled((Wave(among=("site-a",)), Wave()), 3)) == 2, "a list stays, however small the fleet"


@given(st.lists(st.tuples(st.uuids().map(str), st.sampled_from("abcde")), unique_by=lambda pair: pair[0]), st.text())
def test_the_order_takes_a_gateway_of_every_site_before_a_second_of_any(
    gateways: list[tuple[str, str]], seed: str
) -> None:
    order, sites = stratified(gateways, seed), dict(gateways)
    assert sorted(order) == sorted(sites)
    assert order == stratified(reversed(gateways), seed)
    seen: dict[str, int] = {}
    ranks = []
    for name in order:
        seen[sites[name]] = seen.get(sites[name], 0) + 1
        ranks.append(seen[sites[name]])
    assert ranks == sorted(ranks)


def test_a_window_may_pass_midnight_and_is_in_the_site_s_own_time() -> None:
    night = Plan(windows=(Window(22 * 60, 4 * 60),))
    noon_utc = 12 * HOUR_NS
    assert not in_window(night, noon_utc, 0)
    assert in_window(night, noon_utc, 11 * 3600), "23:00 there"
    assert not in_window(night, noon_utc, 8 * 3600), "20:00 in Shanghai"
    assert in_window(Plan(), noon_utc, 0), "no window: at any time"
    assert in_window(Plan(windows=(Window(11 * 60, 13 * 60),)), noon_utc, 0)


def test_what_is_under_way_stays_within_a_share_of_what_is_known() -> None:
    plan = Plan()
    assert in_flight_max(plan, 4, 400) == 100
    assert in_flight_max(plan, 2, 0) == 30
    assert in_flight_max(plan, len(plan.waves) - 1, 750) == 750

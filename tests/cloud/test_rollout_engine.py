"""The rollout engine: waves, gates, people, and a crash at any step."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud.rollout.engine import ATTEMPTS_MAX, Engine
from cloud.rollout.entries import (
    Aborted,
    Completed,
    Entry,
    Paused,
    Replaced,
    Resumed,
    RolledBack,
    Started,
    Told,
    decode_entry,
    encode_entry,
)
from cloud.rollout.gates import LabelTally
from cloud.rollout.plan import Plan, Wave, Window, scaled
from cloud.rollout.rules import Report
from cloud.rollout.state import Outcome, Phase, Rollout
from common.errors import OperatorError
from common.messages import ReleaseHealth

S = 10**9
PLAN = Plan(healthy_frames=100, soak_s=60, deadline_s=600)


@dataclass
class Mine:
    """A fleet that does what a test says, and the world as the engine sees it."""

    fleet: dict[str, Report]
    now_ns: int = 1_800_000_000 * S
    since_ns: int = 0
    active: str = "r1"
    ledger: list[Entry] = field(default_factory=list)
    engine: Engine = field(default_factory=Engine)
    spoken: LabelTally = field(default_factory=LabelTally)

    @classmethod
    def of(cls, gateways: int, sites: int = 10) -> "Mine":
        names = [f"gw-{number:03d}" for number in range(gateways)]
        made = cls({name: Report(name, f"site-{n % sites}", 0, True, "r1") for n, name in enumerate(names)})
        made.fleet = {name: replace(report, seen_ns=made.now_ns) for name, report in made.fleet.items()}
        return made

    def size(self, offline_age_max_s: float) -> int:
        oldest_ns = self.now_ns - offline_age_max_s * S
        return sum(report.online or report.seen_ns >= oldest_ns for report in self.fleet.values())

    def carries(self, release_id: str, rollout: Rollout) -> bool:
        return rollout.started.release_id in release_id.split("+")

    def merged(self, rollout: Rollout, *, forward: bool) -> str:
        return rollout.started.release_id if forward else rollout.before

    def labels(self, rollout: Rollout) -> LabelTally:
        return self.spoken

    def explained(self, rollout: Rollout, site_id: str) -> float:
        return 0.0

    def classes(self, rollout: Rollout) -> Mapping[str, float]:
        return {"belt/normal": 0.0, "belt/tear": 0.0}

    # --- what tests do ------------------------------------------------------------------------

    def write(self, entry: Entry) -> None:
        self.engine.apply(entry)
        self.ledger.append(entry)

    def start(self, name: str = "ro-1", parts: tuple[str, ...] = ("scenario:belt",), plan: Plan = PLAN) -> Rollout:
        plan = Plan(
            **{**{f: getattr(plan, f) for f in plan.__struct_fields__}, "waves": scaled(plan.waves, len(self.fleet))}
        )
        self.write(
            Started(
                rollout_id=name,
                at_ns=self.now_ns,
                actor="li",
                release_id=f"new-{name}",
                parts=parts,
                plan=plan,
                fleet=len(self.fleet),
            )
        )
        return self.engine.get(name)

    def step(self, seconds: float = 0.0) -> list[Entry]:
        self.now_ns += int(seconds * S)
        made = self.engine.step(self)
        self.ledger += made
        for entry in made:
            if isinstance(entry, Completed):
                self.active = entry.release_id
        return made

    def told(self, rollout: Rollout) -> list[str]:
        return [name for name, member in rollout.members.items() if member.outcome is Outcome.UNDER_WAY]

    def becomes(self, name: str, rollout: Rollout, phase: str = "committed", frames: int = 200, **more: object) -> None:
        release = rollout.started.release_id
        health = ReleaseHealth(release_id=release, phase=phase, frames=frames, score_sum=0.9 * frames, **more)  # type: ignore[arg-type]
        running = release if phase == "committed" else "r1"
        self.fleet[name] = replace(
            self.fleet[name], release_id=running, health=(health,), seen_ns=self.now_ns, online=True
        )

    def run_well(self, rollout: Rollout, steps: int = 200) -> None:
        """Everybody who is told becomes healthy."""
        for _ in range(steps):
            self.step(30)
            for name in self.told(rollout):
                self.becomes(name, rollout)
            if rollout.phase not in (Phase.WAITING, Phase.RUNNING):
                return


def again(ledger: list[Entry]) -> Engine:
    """After kill -9: the engine of the ledger as it is on disk."""
    return Engine(decode_entry(encode_entry(entry)) for entry in ledger)


# --- one rollout ------------------------------------------------------------------------------


def test_a_good_release_reaches_everyone_in_waves_spread_over_sites() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    sizes = []
    for _ in range(100):
        mine.step(30)
        for name in mine.told(rollout):
            mine.becomes(name, rollout)
        sizes.append(len(rollout.members))
        if rollout.wave == 1 and len(rollout.members) == 5:
            assert len({mine.fleet[name].site_id for name in rollout.members}) == 5
    assert sorted(set(sizes)) == [1, 5, 30, 40]
    assert rollout.phase is Phase.COMPLETED
    assert mine.active == "new-ro-1"
    assert mine.engine.held_back() == {}


def test_a_wave_is_watched_before_the_next_begins() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    (canary,) = mine.told(rollout)
    mine.becomes(canary, rollout)
    mine.step(1)
    mine.step(58)
    assert len(rollout.members) == 1
    mine.step(2)
    mine.step(0)
    assert len(rollout.members) == 5


def test_active_is_not_healthy_before_enough_frames_and_the_edge_s_own_probation() -> None:
    mine = Mine.of(1)
    rollout = mine.start()
    mine.step()
    mine.becomes("gw-000", rollout, frames=99)
    mine.step(1)
    mine.becomes("gw-000", rollout, phase="probation")
    mine.step(1)
    assert rollout.members["gw-000"].outcome is Outcome.UNDER_WAY
    mine.becomes("gw-000", rollout)
    mine.step(1)
    assert rollout.members["gw-000"].outcome is Outcome.HEALTHY


@pytest.mark.parametrize(
    ("health", "outcome", "reason"),
    [
        ({"phase": "rolled-back", "frames": 30, "reason": "flags doubled"}, Outcome.FAILED, "flags doubled"),
        ({"phase": "rolled-back", "frames": 0, "reason": "disk full"}, Outcome.REFUSED, "disk full"),
        ({"errors": 9}, Outcome.FAILED, "9 errors in 200 looks"),
        ({"restarts": 3}, Outcome.FAILED, "the agent started 3 times"),
        ({"score_squares": float("nan")}, Outcome.FAILED, "its probabilities are no numbers"),
    ],
)
def test_what_hurts_a_gateway_is_named(health: dict[str, object], outcome: Outcome, reason: str) -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    (canary,) = mine.told(rollout)
    mine.becomes(canary, rollout, **health)  # type: ignore[arg-type]
    mine.step(1)
    assert (rollout.members[canary].outcome, rollout.members[canary].reason) == (outcome, reason)
    assert mine.engine.recipe(canary) == (), "it goes back to what the fleet runs"


def test_a_bad_release_is_stopped_after_three_gateways_and_all_go_back() -> None:
    mine = Mine.of(200)
    rollout = mine.start()
    for _ in range(20):
        mine.step(30)
        for name in mine.told(rollout):
            mine.becomes(name, rollout, phase="rolled-back", frames=10, reason="errors")
    assert rollout.phase is Phase.ABORTED
    assert len(rollout.members) == 3
    assert "gate failures" in rollout.why
    assert all(mine.engine.recipe(name) == () for name in mine.fleet)
    (last,) = [entry for entry in mine.ledger if isinstance(entry, Aborted)]
    assert (last.actor, last.why) == ("gate", rollout.why)
    assert last.verdicts


def test_silence_at_the_deadline_is_failure_and_a_late_answer_mends_it() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    (canary,) = mine.told(rollout)
    mine.fleet[canary] = replace(mine.fleet[canary], online=False)
    mine.step(599)
    assert rollout.members[canary].outcome is Outcome.UNDER_WAY
    mine.step(2)
    assert rollout.members[canary].outcome is Outcome.SILENT
    mine.becomes(canary, rollout)
    mine.step(1)
    assert rollout.members[canary].outcome is Outcome.HEALTHY


def test_a_gateway_that_sees_nothing_is_no_failure_and_no_success() -> None:
    mine = Mine.of(2)
    rollout = mine.start()
    mine.step()
    (canary,) = mine.told(rollout)
    mine.becomes(canary, rollout, frames=3)
    mine.step(601)
    assert rollout.members[canary].outcome is Outcome.UNPROVEN
    assert mine.engine.recipe(canary) == (("ro-1", True),), "it keeps the release"
    mine.step(1)
    assert len(rollout.members) == 2, "another one is asked"
    mine.becomes(canary, rollout)
    mine.step(1)
    assert rollout.members[canary].outcome is Outcome.HEALTHY


def test_the_time_in_which_the_centre_was_down_is_nobody_s_silence() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    (canary,) = mine.told(rollout)
    mine.since_ns = mine.now_ns + 3600 * S
    mine.step(3601)
    assert rollout.members[canary].outcome is Outcome.UNDER_WAY


def test_a_silent_gateway_is_told_again_a_bounded_number_of_times() -> None:
    mine = Mine.of(1)
    rollout = mine.start()
    for _ in range(10):
        mine.step(601)
    assert rollout.members["gw-000"].attempts == ATTEMPTS_MAX
    assert rollout.phase is Phase.ABORTED, "nobody else is there to try"


def test_offline_gateways_are_no_part_of_it_and_catch_up_by_themselves() -> None:
    mine = Mine.of(20)
    for number in range(0, 20, 5):
        name = f"gw-{number:03d}"
        mine.fleet[name] = replace(mine.fleet[name], online=False)
    rollout = mine.start()
    mine.run_well(rollout)
    assert rollout.phase is Phase.COMPLETED
    assert len(rollout.members) == 16
    assert mine.engine.recipe("gw-000") == (), "it gets what the fleet runs now"


def test_few_failures_do_not_stop_it_and_are_held_back_by_name() -> None:
    mine = Mine.of(120)
    rollout = mine.start()
    for _ in range(200):
        mine.step(30)
        for name in mine.told(rollout):
            broken = name in ("gw-007", "gw-077")
            mine.becomes(
                name, rollout, **({"phase": "rolled-back", "frames": 5, "reason": "bad disk"} if broken else {})
            )
    assert rollout.phase is Phase.COMPLETED
    assert mine.engine.held_back() == {"gw-007": "bad disk", "gw-077": "bad disk"}
    assert mine.engine.recipe("gw-007") == (("ro-1", False),), "the change is taken back there"
    assert mine.engine.recipe("gw-008") == ()


def test_a_link_outage_of_the_whole_fleet_is_not_the_release_s_fault() -> None:
    def silent_share(*, everywhere: bool) -> Phase:
        mine = Mine.of(400, sites=40)
        rollout = mine.start()
        while len(rollout.members) < 150:
            mine.step(30)
            for name in mine.told(rollout):
                mine.becomes(name, rollout)
        mine.fleet = {name: replace(report, seen_ns=mine.now_ns) for name, report in mine.fleet.items()}
        for number, name in enumerate(mine.fleet):
            hit = number % 12 == 0
            if hit and (everywhere or name in rollout.members):
                mine.fleet[name] = replace(mine.fleet[name], online=False, health=())
        for name in [n for n in rollout.members if not mine.fleet[n].online]:
            rollout.members[name].outcome = Outcome.SILENT
        mine.step(1)
        return rollout.phase

    assert silent_share(everywhere=False) is Phase.ABORTED
    assert silent_share(everywhere=True) is Phase.RUNNING


def test_windows_and_a_narrow_line_make_gateways_wait_their_turn() -> None:
    mine = Mine.of(6, sites=1)
    noon = Plan(healthy_frames=100, soak_s=0, deadline_s=600, windows=(Window(0, 1),), waves=(Wave(),))
    rollout = mine.start(plan=noon)
    mine.step()
    assert not rollout.members
    mine = Mine.of(6, sites=1)
    line = Plan(
        healthy_frames=100, soak_s=0, deadline_s=600, waves=(Wave(),), site_bytes_per_s=1000, release_bytes=100_000
    )
    rollout = mine.start(plan=line)
    for seconds in range(0, 200, 50):
        mine.step(50 if seconds else 0)
    assert len(rollout.members) == 2, "100 s each"
    mine.run_well(rollout)
    assert rollout.phase is Phase.COMPLETED
    assert len(rollout.members) == 6


def test_a_wave_of_named_sites_comes_first() -> None:
    mine = Mine.of(40)
    rollout = mine.start(plan=Plan(waves=(Wave(among=("site-3",)), Wave()), soak_s=0, healthy_frames=100))
    mine.step()
    assert {mine.fleet[name].site_id for name in rollout.members} == {"site-3"}
    mine.run_well(rollout)
    assert rollout.phase is Phase.COMPLETED
    assert len(rollout.members) == 40


def test_labels_given_during_the_canary_stop_it() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    mine.spoken = LabelTally(old_right=25, new_right=1)
    mine.step(1)
    assert rollout.phase is Phase.ABORTED
    assert "labels" in rollout.why


# --- people -----------------------------------------------------------------------------------


def test_paused_nobody_else_is_told_and_resumed_it_is_watched_anew() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    mine.write(Paused(rollout_id="ro-1", at_ns=mine.now_ns, actor="li", why="shift change"))
    for name in mine.told(rollout):
        mine.becomes(name, rollout)
    mine.step(1000)
    assert (rollout.phase, len(rollout.members), rollout.why) == (Phase.PAUSED, 1, "shift change")
    assert rollout.counts()[Outcome.HEALTHY] == 1, "what comes of those that were told is still seen"
    mine.write(Resumed(rollout_id="ro-1", at_ns=mine.now_ns, actor="li"))
    mine.run_well(rollout)
    assert rollout.phase is Phase.COMPLETED


def test_aborted_by_a_person_everyone_goes_back_and_it_cannot_be_resumed() -> None:
    mine = Mine.of(40)
    rollout = mine.start()
    mine.step()
    (canary,) = mine.told(rollout)
    assert mine.engine.recipe(canary) == (("ro-1", True),)
    mine.write(Aborted(rollout_id="ro-1", at_ns=mine.now_ns, actor="li", why="no"))
    assert mine.engine.recipe(canary) == ()
    before = again(mine.ledger)
    with pytest.raises(OperatorError, match="is aborted"):
        mine.engine.apply(Resumed(rollout_id="ro-1", at_ns=1))
    with pytest.raises(OperatorError, match="there is no rollout"):
        mine.engine.apply(Paused(rollout_id="ro-9", at_ns=1))
    with pytest.raises(OperatorError, match="started already"):
        mine.engine.apply(mine.ledger[0])
    assert mine.engine.rollouts == before.rollouts, "a refused order changes nothing"


# --- several ----------------------------------------------------------------------------------


def test_two_rollouts_of_disjoint_scenarios_run_at_once_and_one_is_taken_back_alone() -> None:
    mine = Mine.of(60)
    belt, smoke = mine.start("belt", ("scenario:belt",)), mine.start("smoke", ("scenario:smoke",))
    for _ in range(200):
        mine.step(30)
        both = set(mine.told(belt)) & set(mine.told(smoke))
        assert not both, "one unsettled change at a time on a gateway"
        for rollout in (belt, smoke):
            for name in mine.told(rollout):
                mine.fleet[name] = replace(
                    mine.fleet[name],
                    release_id="+".join(r for r, _ in mine.engine.recipe(name)),
                    health=tuple(
                        ReleaseHealth(release_id=f"new-{r}", phase="committed", frames=500)
                        for r, _ in mine.engine.recipe(name)
                    ),
                )
                mine.becomes(name, rollout)
    assert belt.phase is smoke.phase is Phase.COMPLETED
    mine.write(RolledBack(rollout_id="belt", at_ns=mine.now_ns, actor="li", why="false alarms", release_id="r1+smoke"))
    assert (belt.phase, smoke.phase) == (Phase.ROLLED_BACK, Phase.COMPLETED)


def test_a_class_that_the_canary_no_longer_names_stops_it_there() -> None:
    mine = Mine.of(200)
    rollout = mine.start()
    for _ in range(40):
        mine.step(30)
        for name in mine.told(rollout):
            mine.becomes(name, rollout, compared=80, disagreed=8, moved={"belt/normal": (72, 0), "belt/tear": (8, 8)})
    assert rollout.phase is Phase.ABORTED
    assert len(rollout.members) <= 30
    assert "gate classes (belt/tear): 1.000, limit 0.600" in rollout.why


def test_a_rollout_of_the_same_scenario_waits_for_the_one_before() -> None:
    mine = Mine.of(20)
    first = mine.start("first")
    mine.step()
    second = mine.start("second", ("*",))
    mine.step(1)
    assert (first.phase, second.phase) == (Phase.RUNNING, Phase.WAITING)
    assert mine.engine.waiting_for(("scenario:belt",)) == [second]
    mine.run_well(first)
    assert second.phase is Phase.WAITING
    mine.step(1)
    assert second.phase is Phase.RUNNING
    assert second.before == "new-first"


def test_a_person_who_puts_the_fleet_onto_a_release_ends_every_rollout() -> None:
    mine = Mine.of(20)
    rollout = mine.start()
    mine.step()
    mine.write(Replaced(rollout_id="", at_ns=mine.now_ns, actor="li", release_id="r9"))
    assert rollout.phase is Phase.ABORTED
    assert all(mine.engine.recipe(name) == () for name in mine.fleet)


# --- a crash at any step ----------------------------------------------------------------------


class Centre(RuleBasedStateMachine):
    """Gateways, people and time do anything, and the centre is killed at any moment."""

    @initialize(gateways=st.integers(1, 60))
    def begin(self, gateways: int) -> None:
        self.mine = Mine.of(gateways, sites=7)
        self.started = 0

    @rule(parts=st.sampled_from([("scenario:belt",), ("scenario:smoke",), ("scenario:belt", "detectors"), ("*",)]))
    def start(self, parts: tuple[str, ...]) -> None:
        if self.started < 6:
            self.mine.start(f"ro-{self.started}", parts)
            self.started += 1

    @rule(seconds=st.sampled_from([0, 1, 61, 700]))
    def step(self, seconds: int) -> None:
        paused = {r.rollout_id for r in self.mine.engine.rollouts.values() if r.phase is Phase.PAUSED}
        made = self.mine.step(seconds)
        assert not [e for e in made if isinstance(e, Told) and e.rollout_id in paused]

    @rule(
        share=st.sampled_from([0.3, 1.0]),
        phase=st.sampled_from(["committed", "committed", "committed", "shadow", "rolled-back"]),
        frames=st.sampled_from([0, 50, 300]),
    )
    def report(self, share: float, phase: str, frames: int) -> None:
        for rollout in self.mine.engine.rollouts.values():
            told = self.mine.told(rollout)
            for name in told[: max(1, int(share * len(told)))] if told else []:
                self.mine.becomes(name, rollout, phase=phase, frames=frames)

    @rule(number=st.integers(0, 59), online=st.booleans())
    def link(self, number: int, online: bool) -> None:
        name = f"gw-{number:03d}"
        if name in self.mine.fleet:
            self.mine.fleet[name] = replace(self.mine.fleet[name], online=online)

    @rule(number=st.integers(0, 5), kind=st.sampled_from([Paused, Resumed, Aborted, RolledBack]))
    def order(self, number: int, kind: type[Paused] | type[Resumed] | type[Aborted] | type[RolledBack]) -> None:
        more: Mapping[str, str] = {"release_id": "r1"} if kind is RolledBack else {}
        entry = kind(rollout_id=f"ro-{number}", at_ns=self.mine.now_ns, actor="li", why="because", **more)
        before = again(self.mine.ledger)
        try:
            self.mine.write(entry)
        except OperatorError:
            assert self.mine.engine.rollouts == before.rollouts

    @precondition(lambda self: self.mine.ledger)
    @rule()
    def crash(self) -> None:
        restarted = again(self.mine.ledger)
        assert restarted.rollouts == self.mine.engine.rollouts
        assert [restarted.recipe(name) for name in self.mine.fleet] == [
            self.mine.engine.recipe(name) for name in self.mine.fleet
        ]
        self.mine.engine = restarted

    @invariant()
    def one_unsettled_change_at_a_time(self) -> None:
        if not hasattr(self, "mine"):
            return
        under_way = [
            name
            for rollout in self.mine.engine.rollouts.values()
            if rollout.phase in (Phase.RUNNING, Phase.PAUSED)
            for name in self.mine.told(rollout)
        ]
        assert len(under_way) == len(set(under_way))

    @invariant()
    def overlapping_rollouts_do_not_run_together(self) -> None:
        if not hasattr(self, "mine"):
            return
        running = [r for r in self.mine.engine.rollouts.values() if r.phase in (Phase.RUNNING, Phase.PAUSED)]
        for rollout in running:
            assert not [o for o in running if o is not rollout and o.overlaps(rollout.started.parts)]


Centre.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestCentre = Centre.TestCase

"""Rollouts on a real store and in a browser: what gateways are told, people's orders, and restarts."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from cloud.cli import app
from cloud.console.server import ConsoleServer
from cloud.console.texts import TEXTS
from cloud.desk import Desk
from cloud.registry import Registry
from cloud.rollout.defaults import plan_of
from cloud.service import Service
from cloud.settings import CloudSettings, RolloutSettings
from common.errors import ConfigError, OperatorError
from common.manifest import DetectorLayer, Layer, Scenario
from common.messages import ReleaseHealth, State
from common.mqtt import Broker
from common.settings import load_settings

S = 10**9
QUICK = RolloutSettings(healthy_frames=10, soak_s=60, deadline_s=600)


class Hands:
    """A clock that is moved by hand."""

    now_ns = 1_800_000_000 * S

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.now_ns / S


class Mine:
    """A centre without a broker, and gateways that install what they are told."""

    def __init__(self, folder: Path, gateways: int) -> None:
        self.folder, self.clock = folder, Hands()
        self.names = [f"gw-{number}" for number in range(gateways)]
        self.running = dict.fromkeys(self.names, "")
        self.broken: set[str] = set()
        self.open()

    def open(self) -> None:
        settings = CloudSettings(data_dir=self.folder, rollout=QUICK)
        self.service = Service(settings, Broker(), self.clock)
        self.service.rollouts.start()
        self.rollouts, self.registry = self.service.rollouts, self.service.registry

    def kill(self) -> None:
        """kill -9 and start again."""
        self.service.store.close()
        self.open()

    def report(self) -> None:
        for name in self.names:
            wanted = self.rollouts.wanted(name)
            health: tuple[ReleaseHealth, ...] = ()
            if wanted and name in self.broken and self.running[name]:
                health = (ReleaseHealth(release_id=wanted, phase="rolled-back", frames=5, reason="hot"),)
            elif wanted:
                manifest = self.registry.manifest(wanted)
                before = self.registry.manifest(self.running[name])
                assert before is None or manifest.sequence >= before.sequence, "an edge takes no lower number"
                self.running[name] = wanted
                health = (ReleaseHealth(release_id=wanted, phase="committed", frames=50, score_sum=45),)
            self.service.reported.take(
                State(
                    gateway_id=name,
                    site_id=name,
                    at_ns=self.clock.now_ns,
                    agent_version="1",
                    release_id=self.running[name],
                    health=health,
                )
            )

    def go_on(self, steps: int = 30, seconds: int = 20) -> None:
        for _ in range(steps):
            self.clock.now_ns += seconds * S
            self.report()
            self.service.reported.flush()
            self.rollouts.step()

    def scenario_of(self, name: str, scenario: str) -> str:
        """Hash of the shared head that a gateway runs for it."""
        manifest = self.registry.manifest(self.running[name])
        assert manifest is not None
        return next((item.heads["*"].hash for item in manifest.scenarios if item.name == scenario), "")

    def status(self) -> dict[str, str]:
        return {release.release_id: release.status for release in self.service.store.releases()}


def scenario(name: str, letter: str) -> Scenario:
    return Scenario(name, ("normal", "tear"), "normal", {"*": Layer(letter * 64, 1000)})


BACKBONE = Layer("b" * 64, 5000)


def publish(registry: Registry, *scenarios: Scenario, backbone: Layer = BACKBONE) -> str:
    for layer in (backbone, *(layer for item in scenarios for layer in item.heads.values())):
        registry.layer_path(layer.hash).touch()
    return registry.publish(scenarios, backbone, {"passed": True}, "")


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Mine]:
    made = Mine(tmp_path / "centre", 8)
    first = publish(made.registry, scenario("belt", "1"), scenario("smoke", "2"))
    made.go_on(2)
    assert set(made.running.values()) == {first}, "the first release needs no canary"
    yield made
    made.service.store.close()


def test_a_new_release_goes_to_a_canary_first_and_is_active_at_the_end(mine: Mine) -> None:
    second = publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(1)
    mine.report()
    assert list(mine.running.values()).count(second) == 1
    assert mine.status()[second] == "candidate"
    (row,) = mine.rollouts.list()
    assert (row["phase"], row["parts"], row["waves"]) == ("running", ["scenario:belt"], [1, 5, 8])
    mine.go_on()
    assert set(mine.running.values()) == {second}
    assert mine.status()[second] == "active"
    assert mine.rollouts.list()[0]["phase"] == "completed"
    actions = [audit["action"] for audit in mine.service.store.audits()]
    assert actions == ["rollout completed", "rollout started"]


def test_a_bad_release_comes_back_under_a_new_number_that_the_edge_takes(mine: Mine) -> None:
    mine.broken = set(mine.names)
    second = publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on()
    (row,) = mine.rollouts.list()
    assert row["phase"] == "aborted"
    assert row["told"] == 3
    assert row["failed"][0]["reason"] == "hot"
    assert mine.status()[second] == "aborted"
    mine.broken = set()
    assert {mine.scenario_of(name, "belt") for name in mine.names} == {"1" * 64}


def test_a_canary_that_ran_it_goes_back_when_a_person_aborts(mine: Mine) -> None:
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(2)
    canary = next(name for name in mine.names if mine.scenario_of(name, "belt") == "3" * 64)
    (row,) = mine.rollouts.list()
    mine.rollouts.order("abort", row["rollout_id"], "li", "not today")
    mine.go_on(2)
    assert mine.scenario_of(canary, "belt") == "1" * 64
    assert len(set(mine.running.values())) == 2, "old layers under a new number there, the others were left alone"
    again = mine.rollouts.launch(row["release_id"], "li", "now")
    mine.go_on()
    assert mine.rollouts.show(again)["phase"] == "completed"
    assert {mine.scenario_of(name, "belt") for name in mine.names} == {"3" * 64}


def test_two_scenarios_at_once_and_one_of_them_taken_back_alone(mine: Mine) -> None:
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    publish(mine.registry, scenario("belt", "1"), scenario("smoke", "4"))
    mine.go_on(1)
    assert [row["phase"] for row in mine.rollouts.list()] == ["running", "running"]
    mine.go_on(60)
    smoke, belt = mine.rollouts.list()
    assert (belt["phase"], smoke["phase"]) == ("completed", "completed")
    assert {(mine.scenario_of(n, "belt"), mine.scenario_of(n, "smoke")) for n in mine.names} == {("3" * 64, "4" * 64)}
    mine.rollouts.order("rollback", belt["rollout_id"], "li", "false alarms")
    mine.go_on(2)
    assert {(mine.scenario_of(n, "belt"), mine.scenario_of(n, "smoke")) for n in mine.names} == {("1" * 64, "4" * 64)}
    assert [row["phase"] for row in mine.rollouts.list()] == ["completed", "rolled-back"]


def test_a_gateway_that_failed_is_held_back_by_name_until_the_next_release(mine: Mine) -> None:
    many = Mine(mine.folder.parent / "many", 60)
    publish(many.registry, scenario("belt", "1"))
    many.go_on(2)
    many.broken = {"gw-33"}
    publish(many.registry, scenario("belt", "2"))
    many.go_on(60)
    assert many.rollouts.list()[0]["phase"] == "completed"
    assert many.rollouts.engine.held_back() == {"gw-33": "hot"}
    assert many.scenario_of("gw-33", "belt") == "1" * 64
    many.broken = set()
    many.go_on(2)
    assert many.scenario_of("gw-33", "belt") == "1" * 64
    publish(many.registry, scenario("belt", "3"))
    many.go_on(60)
    assert {many.scenario_of(name, "belt") for name in many.names} == {"3" * 64}
    many.service.store.close()


def test_another_backbone_is_a_change_of_everything_and_waits_for_the_scenarios(mine: Mine) -> None:
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(1)
    publish(mine.registry, scenario("belt", "5"), scenario("smoke", "6"), backbone=Layer("c" * 64, 9000))
    mine.go_on(1)
    assert [row["phase"] for row in mine.rollouts.list()] == ["waiting", "running"]
    for _ in range(90):
        mine.go_on(1)
        for name in mine.names:
            manifest = mine.registry.manifest(mine.running[name])
            assert manifest is not None
            heads = {item.heads["*"].hash[0] for item in manifest.scenarios}
            assert heads <= ({"5", "6"} if manifest.backbone.hash[0] == "c" else {"1", "2", "3"}), "no foreign head"
    assert {mine.scenario_of(name, "belt") for name in mine.names} == {"5" * 64}


def test_killed_after_every_step_it_ends_as_if_it_had_not_been(mine: Mine) -> None:
    second = publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    for _ in range(40):
        before = mine.rollouts.engine.rollouts
        mine.kill()
        assert mine.rollouts.engine.rollouts == before
        mine.go_on(1)
    assert set(mine.running.values()) == {second}
    assert mine.rollouts.list()[0]["phase"] == "completed"


def test_a_release_signed_just_before_a_crash_still_goes_out(mine: Mine) -> None:
    mine.registry.launch = lambda name: ""  # the process ended here
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.kill()
    assert [row["phase"] for row in mine.rollouts.list()] == ["waiting"]


def test_orders_of_another_process_are_obeyed_and_nothing_is_written_over_them(mine: Mine) -> None:
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(1)
    (row,) = mine.rollouts.list()
    beside = Service(CloudSettings(data_dir=mine.folder, rollout=QUICK), Broker(), mine.clock)
    beside.rollouts.order("pause", row["rollout_id"], "li", "shift change")
    mine.go_on(20)
    assert mine.rollouts.list()[0]["phase"] == "paused"
    assert mine.rollouts.list()[0]["told"] == 1
    beside.rollouts.order("resume", row["rollout_id"], "li")
    with pytest.raises(OperatorError, match="is running"):
        beside.rollouts.order("resume", row["rollout_id"], "li")
    with pytest.raises(OperatorError, match="is no order"):
        beside.rollouts.order("explode", row["rollout_id"], "li")
    beside.store.close()
    mine.go_on()
    assert mine.rollouts.list()[0]["phase"] == "completed"


def test_rolled_back_to_an_old_release_the_whole_fleet_goes_at_once(mine: Mine) -> None:
    first = next(iter(mine.running.values()))
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on()
    publish(mine.registry, scenario("belt", "4"), scenario("smoke", "2"))
    mine.go_on(1)
    name = mine.registry.roll_back(first, "back")
    mine.rollouts.replace_all(name, "li", "back")
    mine.go_on(1)
    assert set(mine.running.values()) == {name}
    assert mine.rollouts.list()[0]["phase"] == "aborted"


def test_detectors_are_a_part_of_their_own(mine: Mine) -> None:
    release = mine.registry.set_detectors((DetectorLayer("people", Layer("d" * 64, 10)),), "people")
    assert mine.rollouts.list()[0]["parts"] == ["detectors"]
    mine.go_on()
    assert set(mine.running.values()) == {release}


def test_switched_off_everybody_gets_it_at_once(tmp_path: Path) -> None:
    settings = CloudSettings(data_dir=tmp_path, rollout=RolloutSettings(enabled=False))
    service = Service(settings, Broker())
    service.reported.take(State(gateway_id="gw-1", site_id="s", at_ns=1, agent_version="1", release_id=""))
    publish(service.registry, scenario("belt", "1"))
    second = publish(service.registry, scenario("belt", "2"))
    active = service.registry.active()
    assert active is not None
    assert active.scenarios[0].heads["*"].hash == "2" * 64
    assert service.store.releases()[0].release_id == second
    service.store.close()


def test_an_agent_that_tells_nothing_of_its_release_is_watched_by_its_looks(mine: Mine) -> None:
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(1)
    looks = 0
    for _ in range(60):
        mine.clock.now_ns += 20 * S
        looks += 4
        for name in mine.names:
            wanted = mine.rollouts.wanted(name)
            assert wanted is not None
            state = State(gateway_id=name, site_id=name, at_ns=1, agent_version="0", release_id=wanted, looks=looks)
            mine.service.reported.take(state)
        mine.rollouts.step()
    assert mine.rollouts.list()[0]["phase"] == "completed"


def test_the_plan_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(
        '[rollout]\nwindows = ["22:00-04:00"]\ntimezone = "Asia/Shanghai"\nsoak_s = 5\n'
        'labels = { pilot = ["site-a", "site-b"] }\n'
        '[[rollout.waves]]\namong = ["pilot"]\n[[rollout.waves]]\nshare = 0.1\n'
    )
    plan = plan_of(load_settings(CloudSettings, file).rollout, 1000)
    assert plan.waves[0].among == ("site-a", "site-b")
    assert plan.waves[1].target(1000) == 100
    assert len(plan.waves) == 3, "everyone at the end"
    assert (plan.windows[0].begin_minute, plan.windows[0].end_minute) == (22 * 60, 4 * 60)
    for wrong in ('windows = ["22:00"]', 'windows = ["25:00-01:00"]', 'timezone = "Mars/Olympus"'):
        file.write_text(f"[rollout]\n{wrong}\n")
        with pytest.raises(ConfigError, match="rollout"):
            load_settings(CloudSettings, file)


def test_the_commands_of_a_person(mine: Mine, tmp_path: Path) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f'data_dir = "{mine.folder}"\n')
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(2)
    (row,) = mine.rollouts.list()

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["rollout", words[0], "--config", str(config), *words[1:]])
        assert result.exit_code == 0, result.output
        return result.output

    assert row["rollout_id"] in run("list", "--json")
    assert "paused" in run("pause", row["rollout_id"], "--author", "li", "--why", "shift change")
    shown = msgspec.json.decode(run("show", row["rollout_id"], "--json"))
    assert (shown["phase"], shown["why"]) == ("paused", "shift change")
    assert [line["actor"] for line in shown["ledger"]][-1] == "li"
    assert "shift change" in run("show", row["rollout_id"])
    assert "running" in run("resume", row["rollout_id"])
    assert '"phase": "aborted"' in run("abort", row["rollout_id"], "--json")
    assert "rollout ro-" in run("start", row["release_id"])


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture
def url(mine: Mine) -> Iterator[str]:
    console = ConsoleServer("127.0.0.1", 0, Desk(mine.service))
    console.start()
    yield f"http://127.0.0.1:{console.port}"
    console.stop()


def open_page(page, url: str) -> None:  # type: ignore[no-untyped-def]
    for _ in range(100):
        try:
            page.goto(f"{url}/releases")
        except Exception:  # noqa: BLE001  playwright's error of a port that does not listen yet
            time.sleep(0.05)
        else:
            break
    page.wait_for_selector(".rollout .waves")


@pytest.mark.browser
def test_the_page_shows_waves_filling_up_and_the_red_button_takes_everybody_back(mine: Mine, url: str, page) -> None:  # type: ignore[no-untyped-def]
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(6)
    open_page(page, url)
    assert [item.inner_text() for item in page.query_selector_all(".waves span")] == ["1", "5", "everyone"]
    assert page.query_selector_all(".waves .passed")
    page.click(".rollout summary")
    assert "latency over that of before" in page.inner_text(".rollout table")
    page.on("dialog", lambda dialog: dialog.accept("sparks on camera 3"))
    page.click("button.stop")
    page.wait_for_selector(".rollout .pill.bad")
    assert "sparks on camera 3" in page.inner_text(".rollout")
    mine.go_on(2)
    assert {mine.scenario_of(name, "belt") for name in mine.names} == {"1" * 64}
    assert mine.rollouts.list()[0]["why"] == "sparks on camera 3"


@pytest.mark.browser
def test_the_page_pauses_resumes_and_names_those_that_failed(mine: Mine, url: str, page) -> None:  # type: ignore[no-untyped-def]
    mine.broken = {mine.names[3]}
    publish(mine.registry, scenario("belt", "3"), scenario("smoke", "2"))
    mine.go_on(1)
    open_page(page, url)
    page.on("dialog", lambda dialog: dialog.accept("lunch"))
    page.click('[data-order="pause"]')
    page.wait_for_selector('[data-order="resume"]')
    assert "lunch" in page.inner_text(".rollout")
    page.click('[data-order="resume"]')
    page.wait_for_selector('[data-order="pause"]')
    mine.go_on(40)
    page.wait_for_selector('[data-order="rollback"]')
    page.click("summary:has-text('Gateways that keep')")
    assert mine.names[3] in page.inner_text(".rollout details[open]")
    assert "hot" in page.inner_text(".rollout details[open]")
    page.click(".language")
    page.wait_for_selector(".rollout .waves")
    assert TEXTS["take_back"][1] in page.inner_text(".rollout")
    assert TEXTS["gates"][1] in page.inner_text(".rollout")


def test_the_classes_that_are_judged_are_those_of_the_release_before(mine: Mine) -> None:
    gate = {
        "passed": True,
        "belt": {"moves": {"tear": {"named": 18, "rightly": 12, "wrongly": 2}}},
        "smoke": {"comparisons": []},
    }
    named = Scenario("belt", ("normal", "tear", "hole"), "normal", {"*": Layer("3" * 64, 1000)})
    mine.registry.layer_path("3" * 64).touch()
    mine.registry.publish((named, scenario("smoke", "2")), BACKBONE, gate, "")
    mine.go_on(1)
    (rollout,) = mine.rollouts.engine.rollouts.values()
    assert "belt/hole" in rollout.started.why
    assert mine.rollouts.knowledge.classes(rollout) == {"belt/normal": 0.0, "belt/tear": 0.5}
    assert rollout.plan.limits.moved_max < 1, "old classes are judged although new ones are named"

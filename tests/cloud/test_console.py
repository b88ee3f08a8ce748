"""The console: its API on a real store, and its pages in a real browser."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from cloud.console.server import ConsoleServer
from cloud.console.texts import TEXTS, choose_language, texts
from cloud.desk import Desk
from cloud.learning.export import set_default_backbone
from cloud.rounds import train_now
from cloud.service import Service
from cloud.settings import CloudSettings
from cloud.store import Run
from common.messages import CameraState, Prediction, Sample, State
from common.mqtt import Broker

MakeSample = Callable[..., Sample]
HOSTILE = "<img src=x onerror=window.hacked=1>"


@dataclass
class Office:
    """A centre without a broker, its console, and a client of its API."""

    service: Service
    http: httpx.Client
    url: str


@pytest.fixture
def office(tmp_path: Path, tiny_backbone: Callable[..., bytes], make_sample: MakeSample) -> Iterator[Office]:
    service = Service(CloudSettings(data_dir=tmp_path / "centre"), Broker())
    layer = service.registry.put(tiny_backbone())
    set_default_backbone(tmp_path / "centre" / "layers", layer.hash)
    rng = np.random.default_rng(0)
    made = []
    for number in range(40):
        tear = number % 2
        x = rng.normal(size=12) + 4 * tear
        prediction = Prediction("belt", ("normal", "tear"), (0.6, 0.4), 1.0)
        made.append(
            make_sample(
                number,
                gateway_id=f"gw-{number % 2}",
                site_id=f"site-{number % 2}",
                backbone=layer.hash,
                embedding=x.astype("<f2").tobytes(),
                predictions=(prediction,),
                value=number / 40,
                size=(120, 160),
            )
        )
    service.store.add_samples(made, 1)
    rows = [(sample.sample_id, "belt", ("normal", "tear")[n % 2]) for n, sample in enumerate(made[:20])]
    service.store.add_labels(rows, "li", 1)
    assert service.trainer.run("first").release_id
    for number in range(2):
        cameras = (CameraState(camera_id=HOSTILE, state="failed", detail="there is no video x.mp4"),)
        service.store.put_state(
            State(
                gateway_id=f"gw-{number}",
                site_id=f"site-{number}",
                at_ns=1,
                agent_version="1",
                release_id="r1",
                cameras=cameras,
                chosen={"novel": 3},
            )
        )
    console = ConsoleServer("127.0.0.1", 0, Desk(service))
    console.start()
    url = f"http://127.0.0.1:{console.port}"
    with httpx.Client(base_url=f"{url}/api/v1", timeout=10) as http:
        wait_until(lambda: answers(http))
        yield Office(service, http, url)
    console.stop()
    service.store.close()


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.03)


# --- API --------------------------------------------------------------------------------------


def test_the_queue_says_why_and_a_label_takes_a_sample_out_of_it(office: Office) -> None:
    queue = office.http.get("/queue", params={"scenario": "belt"}).json()
    assert len(queue) == 20
    assert queue[0]["reason"] == "novel"
    assert set(queue[0]["scores"]) == {"novelty", "abnormality", "uncertainty", "redundancy", "value", "doubt"}
    name = queue[0]["sample_id"]
    assert office.http.get(f"/samples/{name}.jpg").headers["content-type"] == "image/jpeg"
    label = {"sample_id": name, "scenario": "belt", "label": "撕裂", "author": "li"}
    assert office.http.post("/labels", json=[label]).json() == {"new": 1}
    assert office.http.post("/labels", json=[label]).json() == {"new": 0}, "the same again changes nothing"
    assert name not in {row["sample_id"] for row in office.http.get("/queue", params={"scenario": "belt"}).json()}
    assert office.http.get("/audits").json()[0]["actor"] == "li"


@pytest.mark.parametrize(
    ("label", "status"),
    [
        ({"sample_id": "f" * 32, "scenario": "belt", "label": "tear"}, 409),
        ({"sample_id": "no hex", "scenario": "belt", "label": "tear"}, 422),
        ({"sample_id": "f" * 32, "scenario": "belt", "label": "x" * 121}, 422),
        ({"sample_id": "f" * 32, "scenario": "belt"}, 422),
    ],
)
def test_a_wrong_label_is_refused(office: Office, label: dict[str, str], status: int) -> None:
    assert office.http.post("/labels", json=[label]).status_code == status


def test_only_json_from_our_own_pages_writes(office: Office) -> None:
    for path in ("/labels", "/decisions", "/rounds", "/releases/r1/rollback"):
        assert office.http.post(path, data={"x": "1"}).status_code == 415
        foreign = {"origin": "http://evil.example", "content-type": "application/json"}
        assert office.http.post(path, content="[]", headers=foreign).status_code == 403
    assert office.http.get("/samples/zz.jpg").status_code == 404
    assert office.http.get("/nowhere").status_code == 404


def test_a_release_is_rolled_back_to_and_recorded(office: Office) -> None:
    first = office.http.get("/releases").json()[0]
    assert first["status"] == "active"
    assert first["gate"]["passed"] is True
    again = office.http.post(f"/releases/{first['release_id']}/rollback", json={"author": "li"}).json()["release_id"]
    rows = {row["release_id"]: row["status"] for row in office.http.get("/releases").json()}
    assert rows == {again: "active", first["release_id"]: "superseded"}
    assert office.http.post("/releases/r9-none/rollback", json={"author": "li"}).status_code == 409


def test_pages_carry_a_policy_that_runs_no_foreign_script(office: Office) -> None:
    reply = httpx.get(office.url, timeout=10)
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_every_word_is_in_both_languages() -> None:
    for key, (english, chinese) in TEXTS.items():
        assert english, key
        assert any("\u4e00" <= sign <= "\u9fff" for sign in chinese + english), key
    assert choose_language("zh", "en", "en") == "zh"
    assert choose_language("xx", None, "zh-CN,zh;q=0.9") == "zh"
    assert choose_language(None, "en", "zh") == "en"
    assert set(texts("zh")) == set(texts("en"))


# --- pages in a browser -----------------------------------------------------------------------


@pytest.mark.browser
def test_labels_are_given_with_single_keys_and_taken_back(office: Office, page) -> None:
    queue = office.http.get("/queue", params={"scenario": "belt"}).json()
    page.goto(f"{office.url}/review")
    page.wait_for_selector("#picture")
    assert queue[0]["sample_id"] in page.get_attribute("#picture", "src")
    for key in "1221s":
        page.keyboard.press(key)
    ids = [bytes.fromhex(row["sample_id"]) for row in queue]
    wait_until(lambda: len(office.service.store.labels("belt")) == 24)
    labels = office.service.store.labels("belt")
    assert [labels.get(name) for name in ids[:5]] == ["normal", "tear", "tear", "normal", None]
    page.keyboard.press("u")  # the skip
    page.keyboard.press("u")  # the last label
    wait_until(lambda: len(office.service.store.labels("belt")) == 23)
    assert ids[3] not in office.service.store.labels("belt")
    assert queue[3]["sample_id"] in page.get_attribute("#picture", "src")


@pytest.mark.browser
def test_a_class_never_seen_is_named_by_a_person(office: Office, page) -> None:
    page.on("dialog", lambda dialog: dialog.accept("锚杆"))
    page.goto(f"{office.url}/review")
    page.wait_for_selector("#picture")
    page.keyboard.press("n")
    wait_until(lambda: "锚杆" in office.service.store.labels("belt").values())
    page.wait_for_selector('[data-label="锚杆"]')
    assert office.service.trainer.scenarios()["belt"] == ("normal", "tear", "锚杆")


@pytest.mark.browser
def test_what_arrives_does_not_change_the_picture_under_the_finger(
    office: Office, page, make_sample: MakeSample
) -> None:
    page.goto(f"{office.url}/review")
    page.wait_for_selector("#picture")
    shown = page.get_attribute("#picture", "src")
    office.service.store.add_samples([make_sample(900, value=1.0, size=(120, 160))], 2)
    page.wait_for_selector(".strip img")
    with page.expect_response(lambda reply: "/queue" in reply.url):
        pass
    assert page.get_attribute("#picture", "src") == shown


@pytest.mark.browser
def test_labels_given_while_the_centre_is_away_are_saved_later(office: Office, page) -> None:
    page.goto(f"{office.url}/review")
    page.wait_for_selector("#picture")
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("2")
    wait_until(lambda: page.inner_text("#notice") != "")
    assert len(office.service.store.labels("belt")) == 20
    page.context.set_offline(False)
    wait_until(lambda: len(office.service.store.labels("belt")) == 22)
    wait_until(lambda: page.inner_text("#notice") == "")


@pytest.mark.browser
def test_hostile_names_are_text_and_faults_are_seen(office: Office, page) -> None:
    page.goto(office.url)
    page.wait_for_selector("tbody tr")
    assert HOSTILE in page.inner_text("tbody")
    assert page.evaluate("window.hacked") is None
    assert "no video x.mp4" in page.get_attribute(".pill", "title")


@pytest.mark.browser
def test_who_is_left_out_and_who_costs_is_shown_with_the_round(office: Office, page) -> None:
    part = {
        "data_version": "v1",
        "quarantined": [{"gateway": HOSTILE, "reason": "labels: other names fit", "samples": 9, "influence": 2.5}],
        "bounded": {"loud-1": 0.004},
        "costly": [{"gateway": "odd-1", "samples": 80, "influence": 1.25}],
    }
    office.service.store.add_run(Run("run-0", 1, 2, "released", {"belt": part}))
    page.goto(f"{office.url}/releases")
    page.get_by_text("other names fit (2.5 points)").wait_for()
    page.get_by_text("loud-1: counts so many samples that each weighs 0.004").wait_for()
    page.get_by_text("odd-1: without it the gold set would gain 1.25 points").wait_for()
    assert page.evaluate("window.hacked") is None


def test_a_release_is_rolled_back_after_a_question(office: Office, page) -> None:
    office.service.registry.roll_back(office.http.get("/releases").json()[0]["release_id"], "second")
    page.goto(f"{office.url}/releases")
    page.wait_for_selector("[data-back]")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("[data-back]")
    assert len(office.http.get("/releases").json()) == 2, "no was said"
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("[data-back]")
    wait_until(lambda: len(office.http.get("/releases").json()) == 3)
    page.click("summary")
    assert "gold" in page.inner_text("details") or "site" in page.inner_text("details")


@pytest.mark.browser
def test_a_round_says_which_scenario_was_held_back_and_why(office: Office, page, make_sample: MakeSample) -> None:
    service = office.service
    only = next(iter(service.store.samples(limit=1)))
    service.store.add_labels([(only.sample_id, "helmet", "no helmet")], "li", 2)
    train_now(service.store, service.trainer, "li", "second", service.clock)
    page.goto(f"{office.url}/releases?lang=zh")
    page.wait_for_selector("text=helmet: 暂无法训练")
    row = page.inner_text("tr:has-text('helmet')")
    assert "已发布" in row
    assert "at least two classes" in row


@pytest.mark.browser
def test_a_label_in_conflict_is_shown_with_its_pictures_and_decided(
    office: Office, page, make_sample: MakeSample
) -> None:
    backbone = office.service.registry.backbone()[0].hash
    x = np.random.default_rng(5).normal(size=12).astype("<f2").tobytes()
    copies = [
        make_sample(
            77, captured_at_ns=at, site_id=HOSTILE[:40], backbone=backbone, embedding=x, size=(120, 160), value=0.0
        )
        for at in (1, 2)
    ]
    office.service.store.add_samples(copies, 3)
    labels = ("normal", "tear")
    office.service.store.add_labels(
        [(sample.sample_id, "belt", label) for sample, label in zip(copies, labels, strict=True)], "li", 3
    )
    office.service.trainer.run("second")
    page.goto(f"{office.url}/datasets")
    page.wait_for_selector(".conflict")
    assert page.locator(".conflict").count() == 1
    assert HOSTILE[:40] in page.inner_text(".conflict")
    pictures = page.locator(".conflict img")
    wait_until(lambda: all(pictures.nth(n).evaluate("i => i.naturalWidth") == 160 for n in range(2)))
    selects = page.locator(".conflict select")
    assert sorted(selects.nth(n).input_value() for n in range(2)) == ["normal", "tear"]
    for number in range(2):
        selects.nth(number).select_option("tear")
    with page.expect_response(lambda reply: "/datasets?" in reply.url):
        pass
    assert [selects.nth(n).input_value() for n in range(2)] == ["tear"] * 2, "what was chosen stays"
    page.click("[data-decide]")
    wait_until(lambda: {office.service.store.labels("belt")[sample.sample_id] for sample in copies} == {"tear"})
    wait_until(lambda: page.locator(".conflict").count() == 0)
    assert office.service.trainer.conflicts("belt") == []
    assert office.http.get("/audits").json()[0]["action"] == "decide labels"


def test_a_decision_about_nothing_is_refused(office: Office) -> None:
    given = {"scenario": "belt", "labels": {"f" * 32: "tear"}}
    assert office.http.post("/decisions", json=given).status_code == 409
    assert office.http.post("/decisions", json=given | {"labels": {}}).status_code == 422
    assert office.http.post("/decisions", json=given | {"labels": {"zz": "tear"}}).status_code == 422
    assert office.http.get(f"/pictures/{'f' * 32}.jpg", params={"scenario": "belt"}).status_code == 404
    found = office.http.get("/datasets", params={"scenario": "belt"}).json()
    assert [row["version"] for row in found["versions"]] == [1]
    assert found["conflicts"] == []


@pytest.mark.browser
def test_the_language_is_switched_and_remembered(office: Office, page) -> None:
    page.goto(f"{office.url}/review")
    page.click(".language")
    page.wait_for_selector("#picture")
    assert page.get_attribute("html", "lang") == "zh"
    assert TEXTS["model_says"][1] in page.inner_text("main")
    page.goto(f"{office.url}/")
    assert TEXTS["fleet"][1] in page.inner_text("nav")
    english = {pair[0] for key, pair in TEXTS.items() if key not in ("language",) and len(pair[0]) > 6}
    page.wait_for_selector("tbody tr")
    assert [word for word in english if word in page.inner_text("body")] == []
    page.goto(f"{office.url}/datasets")
    page.wait_for_selector("tbody tr")
    assert [word for word in english if word in page.inner_text("main").replace("headframe cloud dataset", "")] == []
    json.dumps(page.title())


@pytest.mark.browser
def test_nothing_is_fetched_from_elsewhere_and_a_phone_shows_it(office: Office, page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("/", "/review", "/datasets", "/releases"):
        page.goto(office.url + path)
        page.wait_for_selector("main > *")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{path} is {width} pixels wide on a phone"
    assert all(url.startswith((office.url, "data:")) for url in asked)

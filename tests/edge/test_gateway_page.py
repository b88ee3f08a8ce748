"""The gateway's own page: state, metrics, and labels where pixels may not leave the site; in a real browser."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import httpx
import msgspec
import numpy as np
import pytest

from common.errors import OperatorError
from common.messages import CameraState, Sample, State
from edge.board import WORDS
from edge.exemplars import Exemplars
from edge.gears import Gear
from edge.metrics import STATES
from edge.status import StatusPage

MakeSample = Callable[..., Sample]
BACKBONE = "b" * 64
HOSTILE = "<img src=x onerror=window.hacked=1>"


@dataclass
class Gateway:
    """What the page shows, on a real memory of samples."""

    exemplars: Exemplars
    samples: list[Sample]
    now: State
    linked: bool = True
    looks: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def state(self) -> State:
        return self.now

    def scenarios(self) -> dict[str, tuple[str, ...]]:
        return {"belt": ("normal", "tear")}

    def last_look(self, camera_id: str) -> bytes | None:
        return self.looks.get(camera_id)


@pytest.fixture
def gateway(tmp_path: Path, make_sample: MakeSample) -> Iterator[Gateway]:
    exemplars = Exemplars.open(tmp_path / "exemplars.db")
    samples = []
    for number in range(6):
        picture = np.full((90, 120, 3), 40 * number, np.uint8)
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        samples.append(make_sample(number, value=1 - number / 10, jpeg=jpeg))
        exemplars.remember(samples[-1], keep_picture=True)
    cameras = (
        CameraState(camera_id="belt", state="failed", detail=HOSTILE, looks=3),
        CameraState(
            camera_id="gate",
            state="live",
            gear="watch",
            frames=50,
            looks=7,
            fps=24.96,
            looks_per_s=4.8,
            latency_ms=12.3,
            latency_ms_p99=80.1,
        ),
    )
    state = State(
        gateway_id="gw-1",
        site_id="north",
        at_ns=1,
        agent_version="1",
        release_id="r1",
        share="updates",
        accepted=6,
        cameras=cameras,
    )
    made = Gateway(exemplars, samples, state, looks={"gate": samples[3].jpeg})
    page = StatusPage("127.0.0.1", 0, made)
    page.start()
    made.url = f"http://127.0.0.1:{page.port}"
    wait_until(lambda: answers(made.url))
    yield made
    page.stop()
    exemplars.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.03)


def labels(gateway: Gateway) -> dict[bytes, str]:
    names, _, given = gateway.exemplars.labelled("belt", BACKBONE)
    return dict(zip(names, given, strict=True))


def test_the_page_and_the_metrics_say_what_the_centre_hears(gateway: Gateway) -> None:
    page = httpx.get(gateway.url)
    assert "gw-1" in page.text
    assert "/label" in page.text
    assert HOSTILE not in page.text, "a camera's fault is text"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    metrics = httpx.get(f"{gateway.url}/metrics").text
    assert "headframe_edge_accepted 6" in metrics
    for line in (
        'camera_up{camera="belt"} 0',
        'camera_up{camera="gate"} 1',
        'camera_state{camera="belt",state="failed"} 1',
        'camera_state{camera="belt",state="live"} 0',
        'camera_gear{camera="gate",gear="watch"} 1',
        'camera_fps{camera="gate"} 24.96',
        'camera_looks_per_s{camera="gate"} 4.8',
        'camera_latency_ms{camera="gate",quantile="0.99"} 80.1',
        'camera_frames_total{camera="gate"} 50',
        "spool_rows 0",
        "linked 1",
        'release{release="r1"} 1',
    ):
        assert f"headframe_edge_{line}" in metrics
    assert httpx.get(f"{gateway.url}/api/state").json()["share"] == "updates"


def test_the_page_shows_each_camera_in_either_language(gateway: Gateway) -> None:
    english = httpx.get(gateway.url, headers={"accept-language": "de, en"}).text
    for said in ("25.0", "4.8", "12, 80 ms", "live", "watch", "failed", "connected", "/cameras/gate.jpg?look=7"):
        assert said in english, said
    chinese = httpx.get(gateway.url, headers={"accept-language": "zh-CN,zh;q=0.9"}).text
    assert "关注" in chinese
    assert "关注" in httpx.get(f"{gateway.url}/board?lang=zh").text
    assert "关注" not in httpx.get(f"{gateway.url}/?lang=en", headers={"accept-language": "zh"}).text
    assert all(one and other for one, other in WORDS.values())
    assert {"state_" + state for state in STATES} <= set(WORDS)
    assert {"gear_" + gear.value for gear in Gear} <= set(WORDS)
    gateway.linked = False
    assert "not connected" in httpx.get(f"{gateway.url}/board").text


def test_a_camera_is_seen_as_it_was_looked_at_last_whatever_is_shared(gateway: Gateway) -> None:
    assert gateway.now.share == "updates", "the page is the site's own: pixels do not leave by it"
    picture = httpx.get(f"{gateway.url}/cameras/gate.jpg")
    assert picture.content == gateway.looks["gate"]
    assert picture.headers["cache-control"] == "no-store"
    assert picture.headers["cross-origin-resource-policy"] == "same-origin"
    assert httpx.get(f"{gateway.url}/cameras/belt.jpg").status_code == 404
    assert httpx.get(f"{gateway.url}/cameras/nobody.jpg").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json", "origin": "http://evil.example"}, 403),
    ],
)
def test_only_our_own_page_writes(gateway: Gateway, headers: dict[str, str], status: int) -> None:
    body = f'{{"{gateway.samples[0].sample_id.hex()}": {{"belt": "tear"}}}}'
    assert httpx.post(f"{gateway.url}/api/labels", content=body, headers=headers).status_code in (status, 422)
    assert labels(gateway) == {}
    good = httpx.post(f"{gateway.url}/api/labels", content=body, headers={"content-type": "application/json"})
    assert good.json() == {"known": 1}


def test_a_wrong_label_is_refused(gateway: Gateway) -> None:
    name = gateway.samples[0].sample_id.hex()
    for wrong in ({"no hex": {"belt": "tear"}}, {name: {"belt": "x" * 121}}, {name: {"belt": "two\nlines"}}, [1]):
        assert httpx.post(f"{gateway.url}/api/labels", json=wrong).status_code == 422
    assert httpx.get(f"{gateway.url}/pictures/zz.jpg").status_code == 404
    assert httpx.get(f"{gateway.url}/pictures/{'f' * 32}.jpg").status_code == 404


def test_a_port_that_is_taken_is_named(gateway: Gateway) -> None:
    port = int(gateway.url.rsplit(":", 1)[1])
    with pytest.raises(OperatorError, match=str(port)):
        StatusPage("127.0.0.1", port, gateway)


@pytest.mark.browser
def test_labels_are_given_on_the_site_with_single_keys(gateway: Gateway, page) -> None:
    page.goto(f"{gateway.url}/label")
    page.wait_for_selector("#picture:not([hidden])")
    for key in "12s":
        page.keyboard.press(key)
    wait_until(lambda: len(labels(gateway)) == 2)
    page.keyboard.press("u")
    page.keyboard.press("u")
    wait_until(lambda: len(labels(gateway)) == 1)
    assert labels(gateway) == {gateway.samples[0].sample_id: "normal"}
    page.once("dialog", lambda dialog: dialog.accept("锚杆"))
    page.keyboard.press("n")
    wait_until(lambda: labels(gateway).get(gateway.samples[1].sample_id) == "锚杆")
    page.goto(gateway.url)
    assert page.evaluate("window.hacked") is None


@pytest.mark.browser
def test_the_page_keeps_itself_up_to_date(gateway: Gateway, page) -> None:
    page.goto(gateway.url)
    page.wait_for_function("document.querySelector('#camera-gate img')?.naturalWidth > 0")
    gate = msgspec.structs.replace(gateway.now.cameras[1], gear="alert", looks=8)
    gateway.now = msgspec.structs.replace(gateway.now, cameras=(gateway.now.cameras[0], gate))
    page.wait_for_selector("#camera-gate .chip.alert")
    page.wait_for_function("document.querySelector('#camera-gate img')?.src.endsWith('look=8')")
    assert page.evaluate("document.querySelector('#camera-gate img').naturalWidth") == 120
    assert HOSTILE in page.inner_text("#camera-belt")

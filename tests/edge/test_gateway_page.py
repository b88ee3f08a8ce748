"""The gateway's own page: state, metrics, and labels where pixels may not leave the site; in a real browser."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from common.errors import OperatorError
from common.messages import CameraState, Sample, State
from edge.exemplars import Exemplars
from edge.status import StatusPage

MakeSample = Callable[..., Sample]
BACKBONE = "b" * 64
HOSTILE = "<img src=x onerror=window.hacked=1>"


@dataclass
class Gateway:
    """A status page on a real memory of samples."""

    url: str
    exemplars: Exemplars
    samples: list[Sample]


@pytest.fixture
def gateway(tmp_path: Path, make_sample: MakeSample) -> Iterator[Gateway]:
    exemplars = Exemplars.open(tmp_path / "exemplars.db")
    samples = []
    for number in range(6):
        picture = np.full((90, 120, 3), 40 * number, np.uint8)
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        samples.append(make_sample(number, value=1 - number / 10, jpeg=jpeg))
        exemplars.remember(samples[-1], keep_picture=True)
    cameras = (CameraState(camera_id="belt", state="failed", detail=HOSTILE, looks=3),)
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
    page = StatusPage("127.0.0.1", 0, lambda: state, exemplars, lambda: {"belt": ("normal", "tear")})
    page.start()
    url = f"http://127.0.0.1:{page.port}"
    wait_until(lambda: answers(url))
    yield Gateway(url, exemplars, samples)
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
    assert 'headframe_edge_camera_up{camera="belt"} 0' in metrics
    assert httpx.get(f"{gateway.url}/api/state").json()["share"] == "updates"


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
        StatusPage("127.0.0.1", port, lambda: None, gateway.exemplars, dict)  # type: ignore[arg-type,return-value]


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

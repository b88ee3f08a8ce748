"""The bad link: what it does to bytes and messages, in front of a real broker."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from common.errors import EnvironmentFault
from common.mqtt import Broker
from simulations.chaos.link import Links, Weather
from simulations.lightclient import LightClient
from simulations.mosquitto import Mosquitto, find_mosquitto, running_mosquitto


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    with running_mosquitto(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


@pytest.fixture
def links() -> Iterator[Links]:
    made = Links(seed=1)
    made.start()
    yield made
    made.stop()


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def pair(server: Mosquitto, port: int) -> tuple[LightClient, LightClient, list[bytes]]:
    """A client at home and one behind the link, who hears what the first says to it."""
    got: list[bytes] = []
    home = LightClient("home", window=500)
    away = LightClient("away", ("down/away/receipt", "up/#"), lambda _topic, payload: got.append(payload), window=500)
    await home.connect(server.broker)
    await away.connect(Broker(port=port))
    return home, away, got


def test_a_clear_link_hands_on_and_slices_and_delay_change_no_byte(server: Mosquitto, links: Links) -> None:
    async def talk() -> None:
        home, away, got = await pair(server, links.add("gw", server.broker.port))
        for weather in (Weather(), Weather(slice_bytes=3), Weather(latency_ms=60, jitter_ms=30)):
            links.set("gw", weather)
            got.clear()
            payloads = [bytes([n]) * 700 for n in range(10)]
            began_s = time.monotonic()
            for payload in payloads:
                assert home.publish("down/away/receipt", payload)
            await until(lambda: len(got) == 10)
            assert got == payloads
            assert time.monotonic() - began_s >= weather.latency_ms / 2000
        home.close()
        away.close()

    run(talk())


def test_a_thin_link_takes_the_time_of_its_bits(server: Mosquitto, links: Links) -> None:
    async def talk() -> None:
        home, away, got = await pair(server, links.add("gw", server.broker.port))
        links.set("gw", Weather(bits_per_s=64_000))
        began_s = time.monotonic()
        home.publish("down/away/receipt", bytes(6_000))
        await until(lambda: len(got) == 1)
        assert time.monotonic() - began_s > 0.7
        home.close()
        away.close()

    run(talk())


def test_receipts_are_lost_though_the_broker_believes_they_arrived(server: Mosquitto, links: Links) -> None:
    async def talk() -> None:
        home, away, got = await pair(server, links.add("gw", server.broker.port))
        links.set("gw", Weather(lost_receipts=0.5))
        for number in range(200):
            assert home.publish("down/away/receipt", b"%d" % number)
        await until(lambda: len(got) + links.counts["receipts lost"] == 200)
        assert 60 < len(got) < 140
        links.set("gw", Weather(lost_receipts=1.0))
        got.clear()
        assert away.publish("up/x", b"no receipt")  # comes back to itself
        await until(lambda: got == [b"no receipt"])
        home.close()
        away.close()

    run(talk())


def test_messages_are_doubled_and_swapped(server: Mosquitto, links: Links) -> None:
    async def talk() -> None:
        home, away, got = await pair(server, links.add("gw", server.broker.port))
        links.set("gw", Weather(doubled=1.0))
        assert home.publish("down/away/receipt", b"twice")
        await until(lambda: got == [b"twice", b"twice"])
        assert away.duplicates == 1
        links.set("gw", Weather(swapped=0.5))
        got.clear()
        sent = [b"%d" % number for number in range(40)]
        for payload in sent:
            assert home.publish("down/away/receipt", payload)
        await until(lambda: len(got) == 40)
        assert sorted(got) == sorted(sent)
        assert got != sent
        assert links.counts["swapped"] > 5
        home.close()
        away.close()

    run(talk())


def test_connections_are_reset_and_new_ones_are_taken(server: Mosquitto, links: Links) -> None:
    async def talk() -> None:
        home, away, _ = await pair(server, links.add("gw", server.broker.port))
        links.set("gw", Weather(reset_s=(0.1, 0.2)))
        await until(lambda: not away.up)
        links.clear()
        await away.connect(server.broker)
        assert links.counts["resets"] == 1
        home.close()
        away.close()

    run(talk())


def test_a_half_open_link_says_nothing_and_wakes_again(server: Mosquitto, links: Links) -> None:
    async def talk() -> None:
        port = links.add("gw", server.broker.port)
        home, away, got = await pair(server, port)
        links.set("gw", Weather(silent=True))
        assert home.publish("down/away/receipt", b"later")
        late = LightClient("late")
        with pytest.raises(EnvironmentFault, match="no answer in time"):
            await late.connect(Broker(port=port), timeout_s=0.5)
        assert away.up
        assert got == []
        links.clear()
        await until(lambda: got == [b"later"])
        home.close()
        away.close()

    run(talk())


def test_no_broker_behind_the_link_closes_the_connection(links: Links) -> None:
    port = links.add("gw", 1)
    with pytest.raises(EnvironmentFault):
        run(LightClient("nobody").connect(Broker(port=port)))

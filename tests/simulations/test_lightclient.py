"""The light client against real brokers: the embedded one, and mosquitto."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from cloud.broker import EmbeddedBroker
from common.errors import EnvironmentFault
from common.mqtt import Broker, MqttLink
from simulations.lightclient import Crowd, LightClient
from simulations.mosquitto import find_mosquitto, running_mosquitto
from simulations.processes import free_port, wait_for


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("broker")
    if request.param == "embedded":
        embedded = EmbeddedBroker(folder, "127.0.0.1", 0)
        embedded.start()
        yield embedded.broker
        embedded.stop()
        return
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    with running_mosquitto(folder) as server:
        yield server.broker


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_messages_go_both_ways_at_both_qualities_of_service(broker: Broker) -> None:
    async def talk() -> None:
        got: list[tuple[str, bytes]] = []
        acknowledged: list[int] = []
        reader = LightClient("reader", ("both/#",), lambda topic, payload: got.append((topic, payload)))
        writer = LightClient("writer", window=8)
        await reader.connect(broker)
        await writer.connect(broker)
        big = bytes(range(256)) * 1200
        assert writer.publish("both/zero", b"0", qos=0)
        assert writer.publish("both/one", big, on_ack=lambda: acknowledged.append(1))
        await until(lambda: len(got) == 2 and acknowledged == [1])
        assert got == [("both/zero", b"0"), ("both/one", big)]
        assert writer.in_flight == 0
        reader.close()
        writer.close()

    run(talk())


def test_the_window_says_when_it_is_full(broker: Broker) -> None:
    async def fill() -> None:
        client = LightClient("narrow", window=2)
        await client.connect(broker)
        assert [client.publish("narrow", b"x") for _ in range(3)] == [True, True, False]
        await until(lambda: client.in_flight == 0)
        assert client.publish("narrow", b"x")
        client.close()

    run(fill())


def test_a_will_is_published_when_a_client_vanishes_and_not_when_it_leaves(broker: Broker) -> None:
    got: list[bytes] = []
    watcher = MqttLink(broker, "watcher", ("wills/#",), lambda _topic, payload: got.append(payload))
    watcher.start()
    watcher.wait_connected(15)
    time.sleep(0.2)

    async def leave() -> None:
        gone = LightClient("gone", will=("wills/gone", b"gone"))
        leaves = LightClient("leaves", will=("wills/leaves", b"leaves"))
        await gone.connect(broker)
        await leaves.connect(broker)
        leaves.close()
        gone.abort()

    run(leave())
    wait_for(lambda: bool(got), 10, "the will")
    time.sleep(0.2)
    assert got == [b"gone"]
    watcher.stop()


def test_a_persistent_session_delivers_what_came_meanwhile(broker: Broker) -> None:
    async def sleep_and_wake() -> None:
        got: list[bytes] = []
        sleeper = LightClient("sleeper", ("sleep/#",), lambda _topic, payload: got.append(payload), clean=False)
        sender = LightClient("sender")
        await sleeper.connect(broker)
        await sender.connect(broker)
        sleeper.abort()
        await until(lambda: not sleeper.up)
        await asyncio.sleep(0.1)
        acknowledged: list[int] = []
        assert sender.publish("sleep/x", b"meanwhile", on_ack=lambda: acknowledged.append(1))
        await until(lambda: bool(acknowledged))
        await sleeper.connect(broker)
        await until(lambda: got == [b"meanwhile"])
        sleeper.close()
        sender.close()

    run(sleep_and_wake())


def test_a_handler_that_fails_is_counted_and_the_connection_goes_on(broker: Broker) -> None:
    async def fail() -> None:
        got: list[bytes] = []

        def handle(_topic: str, payload: bytes) -> None:
            got.append(payload)
            if payload == b"bad":
                raise ValueError(payload)

        client = LightClient("handler", ("handler",), handle)
        await client.connect(broker)
        assert client.publish("handler", b"bad")
        assert client.publish("handler", b"good")
        await until(lambda: got == [b"bad", b"good"])
        assert (client.handler_errors, client.up) == (1, True)
        client.close()

    run(fail())


def test_a_crowd_is_connected_kept_alive_and_brought_back(broker: Broker) -> None:
    async def gather() -> None:
        clients = [LightClient(f"crowd-{n}", (f"crowd/{n}",), keepalive_s=2) for n in range(40)]
        crowd = Crowd(broker, clients, connects_per_s=400, seed=1)
        task = asyncio.create_task(crowd.run())
        await crowd.wait_up(10)
        for client in clients[:5]:
            client.abort()
        assert crowd.up == 35
        await asyncio.sleep(3.5)  # above one and a half keep-alives: a broker throws the silent out
        await crowd.wait_up(10)
        assert [client.connects for client in clients] == [2] * 5 + [1] * 35
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: crowd.up == 0)

    run(gather())


def test_nobody_at_home_is_said_with_a_hint() -> None:
    client = LightClient("alone")
    with pytest.raises(EnvironmentFault, match="cannot connect"):
        run(client.connect(Broker(port=free_port())))

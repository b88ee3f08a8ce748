"""Whole rounds of a real centre with virtual gateways over a broker: what a liar changes, and what masks hide."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud.federation.masked import MaskedRounds, Round
from cloud.learning.datasets import Dataset
from cloud.learning.export import read_head
from cloud.learning.heads import HeadWeights, solve_shared
from cloud.learning.unlearning import unlearn
from cloud.service import Service
from cloud.settings import CloudSettings
from cloud.store import Run
from common.cohort import MASKED
from common.flower import message_from_bytes
from common.manifest import SHARED
from common.mqtt import Broker
from common.partition import Partition
from simulations.virtual import SAMPLES, VirtualGateway, made_up

CLASSES, DIMENSION, PICTURES = ("normal", "tear"), 12, 60
HONEST = tuple(f"gw-{number}" for number in range(7))


@contextmanager
def centre(folder: Path, broker: Broker, backbone: bytes, **settings: object) -> Iterator[Service]:
    """A running centre with one dataset; opened again on the same folder it goes on."""
    known = {"learning": {"round_deadline_s": 8.0, "dimensions": 12, "tolerance": 1.0}, "rollout": {"enabled": False}}
    service = Service(CloudSettings.model_validate({"data_dir": folder, **known, **settings}), broker)
    if not service.catalogue.datasets():
        service.registry.set_backbone(backbone)
        rng = np.random.default_rng(3)
        truth = rng.integers(0, 2, PICTURES)
        rows = (rng.normal(size=(PICTURES, DIMENSION)) + 2.0 * truth[:, None]).astype(np.float32)
        ids, sites = tuple(bytes([n]) * 16 for n in range(PICTURES)), ("archive",) * PICTURES
        labels, gold = tuple(CLASSES[k] for k in truth), np.arange(PICTURES) % 5 == 0
        (folder / "datasets").mkdir()
        name = service.registry.backbone()[0].hash
        service.catalogue.put(Dataset("base", "belt", name, CLASSES, rows, labels, sites, ids, gold))
    service.start()
    service.link.wait_connected(15)
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def gateways(broker: Broker, partitions: dict[str, Partition]) -> Iterator[list[VirtualGateway]]:
    made = [VirtualGateway(name, broker, partition, 0.0) for name, partition in partitions.items()]
    try:
        for gateway in made:
            gateway.start()
        for gateway in made:
            gateway.link.wait_connected(15)
        yield made
    finally:
        for gateway in made:
            gateway.learner.stop(5)
            gateway.link.stop()


def a_round(service: Service, fleet: Sequence[VirtualGateway]) -> Run:
    """Start one when all are online, and wait for its end."""

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, "not in time"
            for gateway in fleet:
                gateway.report()
            service.step()
            time.sleep(0.1)

    wait_for(lambda: len(service.online()) == len(fleet))
    run_id = service.rounds.queue("test")
    found = lambda: next(run for run in service.store.runs() if run.run_id == run_id)  # noqa: E731
    wait_for(lambda: found().finished_ns is not None)
    return found()


def released(service: Service) -> HeadWeights:
    active = service.registry.active()
    assert active is not None
    return read_head(service.registry.layer_path(active.scenarios[0].heads[SHARED].hash).read_bytes())


def summed(service: Service) -> tuple[float, HeadWeights]:
    """Samples that count, and the head of them."""
    name = service.registry.backbone()[0].hash
    shared = service.trainer.gathering.evidence("belt", CLASSES, name, None).shared
    return shared.total, solve_shared(shared, 0.3, 12)


def same(one: HeadWeights, other: HeadWeights, rtol: float = 1e-5) -> None:
    for part in ("directions", "offsets", "constants"):
        expected = getattr(other, part)
        np.testing.assert_allclose(getattr(one, part), expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def fall_silent(gateway: VirtualGateway) -> None:
    """Shares its secrets, and then its vector never comes."""
    real = gateway.learner.answer
    gateway.learner.answer = lambda data: None if is_masked(data) else real(data)  # type: ignore[method-assign]


def is_masked(data: bytes) -> bool:
    kind: str = message_from_bytes(data).metadata.message_type
    return kind == MASKED


def of(name: str, backbone: str) -> Partition:
    return made_up(name, "belt", CLASSES, backbone, DIMENSION)


def backbone_of(service: Service) -> str:
    return service.registry.backbone()[0].hash


@pytest.mark.slow
def test_a_gateway_that_flips_its_labels_is_named_and_the_head_is_the_one_without_it(
    broker: Broker, tmp_path: Path, tiny_backbone: Callable[..., bytes]
) -> None:
    with centre(tmp_path, broker, tiny_backbone(DIMENSION)) as service:
        partitions = {name: of(name, backbone_of(service)) for name in (*HONEST, "liar")}
        truth = partitions["liar"].labels
        flipped = tuple(CLASSES[1 - CLASSES.index(label)] for label in truth)
        partitions["liar"] = replace(partitions["liar"], labels=flipped)
        with gateways(broker, partitions) as fleet:
            run = a_round(service, fleet)
        assert run.status == "released", run.record
        assert run.record["federation"]["answered"] == len(HONEST) + 1, "its answer was well-formed, and kept"
        (suspect,) = run.record["belt"]["quarantined"]
        assert suspect["gateway"] == "liar"
        assert suspect["reason"].startswith("labels:")
        assert suspect["samples"] == SAMPLES
        head = released(service)
        total, without = summed(service)
        service.store.delete_contributions(["liar"])
        assert summed(service)[0] == total == PICTURES * 0.8 + SAMPLES * len(HONEST)
        same(head, summed(service)[1])
        same(head, without)
        assert np.abs(believing(service, partitions["liar"]).directions - without.directions).max() > 1e-2


def believing(service: Service, liar: Partition) -> HeadWeights:
    """The head that would have come of it without quarantine."""
    from simulations.virtual import statistics_of

    shared = service.trainer.gathering.evidence("belt", CLASSES, backbone_of(service), None).shared
    return solve_shared(shared + statistics_of(liar, CLASSES), 0.3, 12)


@pytest.mark.slow
def test_of_a_masked_scenario_the_centre_keeps_sums_only(
    broker: Broker, tmp_path: Path, tiny_backbone: Callable[..., bytes]
) -> None:
    masked = {"masked": ["belt"], "cohort": 8, "cohort_min": 5, "directions": DIMENSION}
    layer = tiny_backbone(DIMENSION)
    with centre(tmp_path, broker, layer, privacy=masked) as service:
        partitions = {name: of(name, backbone_of(service)) for name in HONEST}
        with gateways(broker, partitions) as fleet:
            first, again = a_round(service, fleet), a_round(service, fleet)
            labels: dict[str, dict[str, dict[bytes, str]]] = {}
            asked = Round(again.run_id, backbone_of(service), {"belt": CLASSES}, labels, 8.0)
            datasets = {"belt": service.catalogue.datasets("belt")}
            fall_silent(fleet[2])
            resumed = MaskedRounds(service.store, service.settings.privacy).run(
                service.grid, HONEST, asked, datasets, time.time_ns()
            )
        assert (resumed["summed"], resumed["silent"]) == (len(HONEST) - 1, 1), "as after a crash in the middle of it"
        for run in (first, again):
            assert run.status == "released", run.record
            assert run.record["federation"]["sums"]["summed"] == len(HONEST)
            assert run.record["masked"][0]["scenarios"] == ["belt"]
        (kept,) = service.store.contributors()
        assert kept.startswith(f"sum/{again.run_id}-"), "the newest sum stands for the older"
        assert run.record["belt"]["by_site"] == {}, "no site by itself"
        assert summed(service)[0] == PICTURES * 0.8 + SAMPLES * (len(HONEST) - 1)
        head = released(service)
    with centre(tmp_path, broker, layer) as service:  # somebody changed their mind: in the clear again
        with gateways(broker, partitions) as fleet:
            a_round(service, fleet)
        plain_total, plain = summed(service)
        assert plain_total == PICTURES * 0.8 + SAMPLES * len(HONEST), "nobody counts twice"
        same(head, plain, 5e-3)  # directions travel as float16


@pytest.mark.slow
def test_unlearning_a_member_lets_its_sum_go_and_the_budget_ends_the_asking(
    broker: Broker, tmp_path: Path, tiny_backbone: Callable[..., bytes]
) -> None:
    pytest.importorskip("dp_accounting")
    masked = {"masked": ["belt"], "cohort": 8, "directions": 6, "epsilon": 8.0, "epsilon_total": 10.0}
    with centre(tmp_path, broker, tiny_backbone(DIMENSION), privacy=masked) as service:
        partitions = {name: of(name, backbone_of(service)) for name in HONEST}
        with gateways(broker, partitions) as fleet:
            first, second = a_round(service, fleet), a_round(service, fleet)
        assert first.record["masked"][0]["epsilon"] == {"belt": pytest.approx(8.0, abs=1e-3)}
        assert first.record["federation"]["sums"]["summed"] == len(HONEST)
        assert second.record["masked"][0]["scenarios"] == [], "two rounds would be over 10"
        (kept,) = service.store.contributors()
        assert kept.startswith(f"sum/{first.run_id}-")
        assert summed(service)[0] != PICTURES * 0.8
        found = unlearn("gw-3", service.store, service.registry, service.trainer, "li", 9)
        assert found.contributions == 1
        assert service.store.contributors() == []
        assert summed(service)[0] == PICTURES * 0.8
        same(found.heads["belt"], summed(service)[1])

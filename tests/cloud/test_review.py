"""The review queue over a real store: the order follows labels and releases, and nothing that waits is hidden."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud.learning.export import set_default_backbone
from cloud.service import Service
from cloud.settings import CloudSettings
from common.messages import Sample
from common.mqtt import Broker

MakeSample = Callable[..., Sample]
D = 12
CENTRES = np.random.default_rng(3).normal(0, 3, (3, D))
KINDS = ("normal", "tear", "rod")


@pytest.fixture
def service(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> Iterator[Service]:
    """A centre without a network."""
    made = Service(CloudSettings(data_dir=tmp_path / "centre"), Broker())
    layer = made.registry.put(tiny_backbone())
    set_default_backbone(tmp_path / "centre" / "layers", layer.hash)
    yield made
    made.store.close()


@pytest.fixture
def upload(service: Service, make_sample: MakeSample) -> Callable[..., list[Sample]]:
    """Samples of a class arrive, of the centre's backbone unless told otherwise."""
    backbone, _ = service.registry.backbone()
    rng = np.random.default_rng(0)

    def of(kind: str, count: int, first: int, **fields: object) -> list[Sample]:
        rows = CENTRES[KINDS.index(kind)] + rng.normal(size=(count, D))
        made = [
            make_sample(first + n, embedding=row.astype("<f2").tobytes(), **{"backbone": backbone.hash} | fields)
            for n, row in enumerate(rows)
        ]
        service.store.add_samples(made, 1)
        return made

    return of


def ids(samples: list[Sample]) -> set[bytes]:
    return {sample.sample_id for sample in samples}


def teach(service: Service, upload: Callable[..., list[Sample]]) -> None:
    """A release that knows normal and tear."""
    known = [*upload("normal", 12, 0), *upload("tear", 12, 20)]
    rows = [(s.sample_id, "belt", "normal" if n < 12 else "tear") for n, s in enumerate(known)]
    service.store.add_labels(rows, "li", 1)
    assert service.trainer.run("first").release_id


def test_before_anything_was_learnt_the_most_valuable_come_first(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    weak, strong = upload("normal", 3, 0, value=0.2), upload("tear", 2, 10, value=0.9)
    assert ids(service.review.queue("belt", 2)) == ids(strong)
    assert ids(service.review.queue("belt", 9)) == ids(weak + strong)


def test_one_label_of_each_class_is_not_enough_to_compare_with_and_a_third_is(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    strong, weak = upload("normal", 20, 0, value=0.9), upload("tear", 4, 30, value=0.1)
    service.store.add_labels([(strong[0].sample_id, "belt", "normal"), (weak[0].sample_id, "belt", "tear")], "li", 1)
    assert ids(service.review.queue("belt", 3)) <= ids(strong)
    service.store.add_label(strong[1].sample_id, "belt", "normal", "li", 2)
    assert service.review.queue("belt", 1)[0].sample_id in ids(weak), "of a class of one label"


def test_what_no_release_knows_comes_before_what_gateways_thought_valuable(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    teach(service, upload)
    known, rods = upload("normal", 30, 50, value=0.9), upload("rod", 3, 90, value=0.1)
    assert service.review.queue("belt", 1)[0].sample_id in ids(rods)
    assert {s.sample_id for s in service.review.queue("belt", 60)} == ids(known + rods)


def test_a_label_takes_a_sample_out_of_the_queue_and_the_class_it_named_is_pursued(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    teach(service, upload)
    upload("normal", 30, 50, value=0.9)
    rods = upload("rod", 6, 90, value=0.1)
    first = service.review.queue("belt", 1)[0]
    service.store.add_label(first.sample_id, "belt", "rod", "li", 2)
    assert service.review.queue("belt", 1)[0].sample_id in ids(rods) - {first.sample_id}
    service.store.add_label(first.sample_id, "belt", "", "li", 3)
    assert first.sample_id in {s.sample_id for s in service.review.queue("belt", 6)}


def test_samples_of_another_backbone_wait_behind_those_that_compare(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    teach(service, upload)
    old, new = upload("rod", 2, 50, backbone="o" * 64, value=0.9), upload("normal", 4, 60, value=0.1)
    queue = [s.sample_id for s in service.review.queue("belt", 10)]
    assert set(queue[:4]) == ids(new)
    assert set(queue[4:]) == ids(old)


def test_looking_at_the_queue_makes_no_version_of_the_dataset(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    teach(service, upload)
    before = service.store.versions("belt", 10)
    service.store.add_label(upload("rod", 1, 90)[0].sample_id, "belt", "rod", "li", 2)
    service.review.queue("belt", 5)
    assert service.store.versions("belt", 10) == before


def test_a_scenario_without_labels_has_a_queue_of_its_own(
    service: Service, upload: Callable[..., list[Sample]]
) -> None:
    teach(service, upload)
    assert len(service.review.queue("helmet", 50)) == 24
    assert service.review.queue("belt", 50) == []

"""The gateway's memory of its own samples and their labels."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.messages import Sample
from edge.exemplars import Exemplars

MakeSample = Callable[..., Sample]
BACKBONE = "b" * 64


@pytest.fixture
def exemplars(tmp_path: Path) -> Iterator[Exemplars]:
    opened = Exemplars.open(tmp_path / "exemplars.db", rows_max=10)
    yield opened
    opened.close()


def test_labels_of_known_samples_count_and_unknown_ones_are_ignored(
    exemplars: Exemplars, make_sample: MakeSample
) -> None:
    samples = [make_sample(number) for number in range(3)]
    for sample in samples:
        exemplars.remember(sample, keep_picture=False)
    given = {sample.sample_id: {"belt": "tear"} for sample in samples[:2]}
    assert exemplars.label({**given, b"x" * 16: {"belt": "tear"}}) == 2
    names, embeddings, labels = exemplars.labelled("belt", BACKBONE)
    assert names == sorted(sample.sample_id for sample in samples[:2])
    assert labels == ["tear", "tear"]
    by_id = {sample.sample_id: sample.embedding for sample in samples}
    for name, row in zip(names, embeddings, strict=True):
        np.testing.assert_array_equal(row, np.frombuffer(by_id[name], "<f2"))
    assert exemplars.labelled("belt", "c" * 64)[0] == [], "of another backbone"
    assert exemplars.labelled("helmet", BACKBONE)[0] == []


def test_a_label_is_replaced_and_taken_back(exemplars: Exemplars, make_sample: MakeSample) -> None:
    name = make_sample().sample_id
    exemplars.remember(make_sample(), keep_picture=False)
    exemplars.label({name: {"belt": "tear"}})
    exemplars.label({name: {"belt": "normal"}})
    assert exemplars.labelled("belt", BACKBONE)[2] == ["normal"]
    exemplars.label({name: {"belt": ""}})
    assert exemplars.labelled("belt", BACKBONE)[2] == []
    assert exemplars.counts() == {"samples": 1, "labels": 0}


def test_pictures_are_kept_only_where_labels_are_given_on_the_site(
    exemplars: Exemplars, make_sample: MakeSample
) -> None:
    exemplars.remember(make_sample(1, value=0.2), keep_picture=True)
    exemplars.remember(make_sample(2, value=0.9), keep_picture=True)
    exemplars.remember(make_sample(3, value=1.0), keep_picture=False)
    assert exemplars.waiting("belt", 10) == [make_sample(n).sample_id for n in (2, 1)]
    assert exemplars.picture(make_sample(2).sample_id) == make_sample(2).jpeg
    assert exemplars.picture(make_sample(3).sample_id) is None
    exemplars.label({make_sample(2).sample_id: {"belt": "tear"}})
    assert exemplars.waiting("belt", 10) == [make_sample(1).sample_id]
    assert len(exemplars.waiting("helmet", 10)) == 2


def test_beyond_the_bound_the_oldest_unlabelled_go_first(exemplars: Exemplars, make_sample: MakeSample) -> None:
    exemplars.remember(make_sample(0), keep_picture=False)
    exemplars.label({make_sample(0).sample_id: {"belt": "tear"}})
    for number in range(1, 15):
        exemplars.remember(make_sample(number), keep_picture=False)
    assert exemplars.counts() == {"samples": 10, "labels": 1}
    exemplars.label({make_sample(number).sample_id: {"belt": "normal"} for number in range(15)})
    names = set(exemplars.labelled("belt", BACKBONE)[0])
    assert names == {make_sample(number).sample_id for number in (0, *range(6, 15))}


def test_everything_is_there_after_reopening(tmp_path: Path, make_sample: MakeSample) -> None:
    first = Exemplars.open(tmp_path / "exemplars.db")
    first.remember(make_sample(), keep_picture=True)
    first.label({make_sample().sample_id: {"belt": "tear"}})
    first.close()
    second = Exemplars.open(tmp_path / "exemplars.db")
    assert second.labelled("belt", BACKBONE)[2] == ["tear"]
    second.close()

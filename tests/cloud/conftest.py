"""Samples and a store for the tests of the centre."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from cloud.store import Store
from common.ids import sample_id
from common.messages import Prediction, Sample, Scores

MakeSample = Callable[..., Sample]


@pytest.fixture(scope="session")
def make_sample() -> MakeSample:
    """A valid sample, another one for each number; any field can be replaced, the id follows the content."""

    def make(number: int = 0, *, value: float = 0.5, size: tuple[int, int] = (32, 48), **fields: object) -> Sample:
        picture = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        sample = Sample(
            sample_id=b"",
            gateway_id="north-1",
            site_id="north",
            camera_id="belt",
            captured_at_ns=1_700_000_000_000_000_000 + number,
            release_id="r1-00000000",
            backbone="b" * 64,
            width_px=size[1],
            height_px=size[0],
            jpeg=cv2.imencode(".jpg", picture)[1].tobytes(),
            embedding=np.array([number % 100, 1, 0.5, -2], "<f2").tobytes(),
            predictions=(Prediction("belt", ("normal", "tear"), (0.25, 0.75), 1.5),),
            scores=Scores(0.1, 0.2, 0.3, 0.4, value),
            reason="novel",
            pixel_path="main-48x32/whole",
        )
        sample = msgspec.structs.replace(sample, **fields)
        if "sample_id" in fields:
            return sample
        name = sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns)
        return msgspec.structs.replace(sample, sample_id=name)

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store in a folder of the test's own."""
    opened = Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs")
    yield opened
    opened.close()

"""Samples for the tests of the edge."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from common.ids import sample_id
from common.messages import Prediction, Sample, Scores

MakeSample = Callable[..., Sample]


@pytest.fixture(scope="session")
def make_sample() -> MakeSample:
    """A sample for each number; any field can be replaced, the id follows the content."""

    def make(number: int = 0, *, value: float = 0.5, size: int = 200, **fields: object) -> Sample:
        sample = Sample(
            sample_id=b"",
            gateway_id="north-1",
            site_id="north",
            camera_id="belt",
            captured_at_ns=1_700_000_000_000_000_000 + number,
            release_id="r1-00000000",
            backbone="b" * 64,
            width_px=48,
            height_px=32,
            jpeg=np.random.default_rng(number).bytes(size),
            embedding=np.array([number % 100, 1, 0.5, -2], "<f2").tobytes(),
            predictions=(Prediction("belt", ("normal", "tear"), (0.25, 0.75), 1.5),),
            scores=Scores(0.1, 0.2, 0.3, 0.4, value),
            reason="novel",
        )
        sample = msgspec.structs.replace(sample, **fields)
        name = sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns)
        return msgspec.structs.replace(sample, sample_id=name)

    return make

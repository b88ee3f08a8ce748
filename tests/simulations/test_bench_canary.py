"""The canary's benchmark on drawn embeddings: the product stops what lost a class, and lets pass what did not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from simulations.bench import canary
from simulations.bench._sites import Pictures
from simulations.bench._successors import ANY_CLASS, CASES, GOOD, NAN, NEW_CLASS, PERMUTED, SLOW, Trial, make_trials

CLASSES = ("hole", "normal", "tear", "wear")
Made = tuple[dict[str, Trial], NDArray[np.str_]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.array(CLASSES), 60)
    centres = rng.normal(0, 3, (len(CLASSES), 16))
    x = (centres[np.repeat(np.arange(len(CLASSES)), 60)] + rng.normal(0, 1, (240, 16))).astype(np.float32)
    pictures = Pictures("drawn", CLASSES, x, labels, labels, np.full(240, 20_000))
    return make_trials(pictures, 5, tmp_path_factory.mktemp("heads"))


def test_every_case_is_made(made: Made) -> None:
    assert set(made[0]) == set(CASES)


@pytest.mark.parametrize("case", [GOOD, NEW_CLASS])
def test_a_good_head_passes_the_canary(made: Made, case: str) -> None:
    run = canary._run(made[0][case], made[1], 5)
    assert (run.stopped, run.exposed) == (False, 30)


@pytest.mark.parametrize(
    ("case", "gate", "exposed"),
    [(PERMUTED, "classes", 30), (ANY_CLASS, "classes", 30), (NAN, "failures", 3), (SLOW, "latency", 5)],
)
def test_a_spoilt_head_is_stopped_there_without_labels(made: Made, case: str, gate: str, exposed: int) -> None:
    run = canary._run(made[0][case], made[1], 5)
    assert gate in run.gates
    assert run.exposed <= exposed
    assert run.lost == (gate == "classes")

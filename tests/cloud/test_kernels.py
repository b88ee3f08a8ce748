"""Folding gives the same sum by whichever kernel, and threads are used while they help."""

import numpy as np
import pytest

from cloud.federation.folding import Kernel, NumpyKernel
from cloud.federation.kernels import TEAM_VALUES_MIN, TRIAL_MAX, TRIAL_MIN, Team, TorchKernel


@pytest.mark.parametrize("kernel", [NumpyKernel(), TorchKernel()], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_an_update_is_added_with_its_weight(kernel: Kernel, dtype: type) -> None:
    rng = np.random.default_rng(1)
    update = [(rng.normal(size=size) * 100).astype(dtype) for size in (5, TEAM_VALUES_MIN)]
    totals = [np.ones(len(part), np.float32 if dtype is np.float32 else np.float64) for part in update]
    for _ in range(2 * TRIAL_MIN):
        assert kernel.fold(totals, update, 0.5) is None
    for total, part in zip(totals, update, strict=True):
        np.testing.assert_allclose(total, 1 + TRIAL_MIN * part.astype(np.float64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kernel", [NumpyKernel(), TorchKernel()], ids=["numpy", "torch"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_leaves_all_as_it_was(kernel: Kernel, wrong: float) -> None:
    update = [np.ones(4, np.float32), np.ones(TEAM_VALUES_MIN, np.float32)]
    update[1][-1] = wrong
    totals = [np.zeros(len(part), np.float32) for part in update]
    assert kernel.fold(totals, update, 1.0) == 1
    assert not any(total.any() for total in totals)


def test_values_whose_sum_overflows_are_finite_all_the_same() -> None:
    update = [np.full(4, 3e38, np.float32)]
    assert TorchKernel().fold([np.zeros(4, np.float32)], update, 1e-3) is None


def test_threads_are_tried_now_and_then_and_kept_while_they_are_faster() -> None:
    team = Team()
    for _ in range(TRIAL_MIN):
        assert not team.is_together
        team.tell(1000, 2.0)
    for _ in range(100):
        assert team.is_together
        team.tell(1000, 1.0)
    team.tell(1000, 50.0)
    assert not team.is_together


def test_on_busy_cores_trials_become_rare() -> None:
    team, trials = Team(), 0
    for _ in range(3 * TRIAL_MAX):
        trials += team.is_together
        team.tell(1000, 50.0 if team.is_together else 2.0)
    assert 5 < trials < 15, "one slow fold in hundreds, and in thousands after that"

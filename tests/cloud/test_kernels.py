"""Folding gives the same sum by whichever kernel, and threads are used while they help."""

import math
import time

import numpy as np
import pytest

from cloud.federation.folding import Kernel, NumpyKernel
from cloud.federation.kernels import LOOK_S, SHARED_VALUES_MIN, Cores, TorchKernel, busy_s


@pytest.mark.parametrize("kernel", [NumpyKernel(), TorchKernel()], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_an_update_is_added_with_its_weight(kernel: Kernel, dtype: type) -> None:
    rng = np.random.default_rng(1)
    update = [(rng.normal(size=size) * 100).astype(dtype) for size in (5, SHARED_VALUES_MIN)]
    totals = [np.ones(len(part), np.float32 if dtype is np.float32 else np.float64) for part in update]
    for _ in range(16):
        assert kernel.fold(totals, update, 0.5) is None
    for total, part in zip(totals, update, strict=True):
        np.testing.assert_allclose(total, 1 + 8 * part.astype(np.float64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kernel", [NumpyKernel(), TorchKernel()], ids=["numpy", "torch"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_leaves_all_as_it_was(kernel: Kernel, wrong: float) -> None:
    update = [np.ones(4, np.float32), np.ones(SHARED_VALUES_MIN, np.float32)]
    update[1][-1] = wrong
    totals = [np.zeros(len(part), np.float32) for part in update]
    assert kernel.fold(totals, update, 1.0) == 1
    assert not any(total.any() for total in totals)


def test_values_whose_sum_overflows_are_finite_all_the_same() -> None:
    update = [np.full(4, 3e38, np.float32)]
    assert TorchKernel().fold([np.zeros(4, np.float32)], update, 1e-3) is None


class Machine:
    """A machine on which this process uses one core, and others as much as is said."""

    def __init__(self) -> None:
        self.now_s = self.own_s = self.busy_s = 0.0
        self.cores = Cores(lambda: self.busy_s, lambda: self.own_s, lambda: self.now_s)

    def passes(self, seconds: float, *, others: float) -> bool:
        self.now_s += seconds
        self.own_s += seconds
        self.busy_s += seconds * (1 + others)
        return self.cores.are_free


def test_all_threads_fold_only_while_nobody_else_computes() -> None:
    machine = Machine()
    assert not machine.passes(LOOK_S / 2, others=0.0), "nothing is known yet"
    assert machine.passes(LOOK_S, others=0.02)
    assert machine.passes(LOOK_S / 2, others=1.0), "looked at now and then"
    assert not machine.passes(LOOK_S, others=1.0)
    assert machine.passes(LOOK_S, others=0.0)


def test_where_the_system_does_not_say_who_computes_one_thread_folds() -> None:
    now = iter(range(10))
    cores = Cores(lambda: math.inf, lambda: 0.0, lambda: float(next(now)))
    assert not cores.are_free


def test_what_the_machine_computes_is_read() -> None:
    before, began = busy_s(), time.process_time()
    while time.process_time() - began < 0.3:
        pass
    assert 0.2 < busy_s() - before < math.inf

"""Benchmarks are found by their modules, so that adding one is adding a file."""

import importlib
import inspect

import pytest

from common.errors import OperatorError
from simulations.bench import bench_names, run_bench


@pytest.mark.parametrize("name", bench_names())
def test_every_benchmark_is_a_function_with_a_quick_form(name: str) -> None:
    bench = getattr(importlib.import_module(f"simulations.bench.{name}"), f"bench_{name}")
    assert list(inspect.signature(bench).parameters) == ["quick"]


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(OperatorError, match="no benchmark 'lop'") as error:
        run_bench("lop", quick=True, as_json=True)
    assert "loop" in error.value.hint

"""Layers on request: whole, or as a delta of what the gateway holds."""

from pathlib import Path

import numpy as np
import pytest

from cloud.learning.export import export_head
from cloud.learning.heads import HeadWeights
from cloud.registry import Registry
from cloud.store import Store
from cloud.trust import Repository
from common.clock import SystemClock
from common.delta import apply_delta
from common.manifest import Layer
from common.messages import Fetch

CLASSES, DIMENSION = ("normal", "tear"), 2_000


def head(seed: int, move: float = 0.0, dimension: int = DIMENSION) -> bytes:
    generator, moves = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    directions = generator.normal(size=(2, dimension)) * (1 + move * moves.normal(size=(2, dimension)))
    return export_head(HeadWeights(CLASSES, directions, np.zeros(2), np.ones(2), np.eye(2)), "belt", "b" * 64)


@pytest.fixture
def registry(tmp_path: Path, store: Store) -> Registry:
    return Registry(tmp_path / "layers", store, Repository.open(tmp_path / "trust", SystemClock()), SystemClock())


def fetched(registry: Registry, layer: Layer, *bases: str) -> tuple[bytes, str]:
    """All parts of a layer, and the base they are a delta of."""
    data, base = b"", ""
    while True:
        part = registry.part(Fetch(layer=layer.hash, offset=len(data), length=3_000, bases=bases))
        data, base = data + part.data, part.base
        if len(data) >= part.total_bytes:
            return data, base


def test_a_head_comes_as_a_delta_of_the_one_before(registry: Registry) -> None:
    old, new = head(1), head(1, move=0.001)
    base, layer = registry.put(old), registry.put(new)
    data, of = fetched(registry, layer, "f" * 64, base.hash)
    assert of == base.hash
    assert len(data) < 0.9 * len(new)
    assert apply_delta(old, data, layer.size_bytes) == new


def test_a_gateway_that_names_nothing_gets_the_file(registry: Registry) -> None:
    registry.put(head(1))
    layer = registry.put(head(1, move=0.001))
    assert fetched(registry, layer) == (head(1, move=0.001), "")


@pytest.mark.parametrize("bases", [("f" * 64,), ("../release",), ("",), ("deltas",)])
def test_an_unknown_base_is_passed_over(registry: Registry, bases: tuple[str, ...]) -> None:
    layer = registry.put(head(1))
    assert fetched(registry, layer, *bases) == (head(1), "")


def test_layers_that_have_nothing_in_common_make_no_delta(registry: Registry) -> None:
    stranger, layer = registry.put(head(1, dimension=4 * DIMENSION)), registry.put(head(1))
    assert fetched(registry, layer, stranger.hash) == (head(1), "")


def test_a_layer_that_is_not_held_is_said_so(registry: Registry) -> None:
    assert registry.part(Fetch(layer="e" * 64, offset=0, length=10)).total_bytes == 0
    assert registry.part(Fetch(layer="../key", offset=0, length=10)).total_bytes == 0


def test_the_smallest_delta_that_is_kept_is_sent(registry: Registry) -> None:
    bases = [registry.put(head(1, move=move)) for move in (0.0, 0.01, 0.02)]
    layer = registry.put(head(1, move=0.03))
    registry.put_delta(bases[0], layer, b"d" * 300)
    registry.put_delta(bases[2], layer, b"d" * 200)
    for names in (bases, bases[::-1]):
        assert fetched(registry, layer, *(base.hash for base in names)) == (b"d" * 200, bases[2].hash)

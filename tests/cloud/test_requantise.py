"""An int8 variant in the numbers of the one before: small on the wire, no worse than from scratch, equal to the bit."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from cloud.cli import app
from cloud.learning.curvature import input_moments
from cloud.learning.datasets import Catalogue, read_folder
from cloud.learning.export import set_default_backbone
from cloud.learning.heads import HeadWeights
from cloud.learning.quantise import embed_all, fold, quantise
from cloud.learning.requantise import STEPS, Requantised, Requantiser, Yardstick, coarsest, unlike
from cloud.learning.training import Trainer
from cloud.learning.variants import MadeVariant, keep_scales, make_variant
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Store
from cloud.trust import Repository
from common import manifest as keys
from common.backbone import Backbone
from common.clock import SystemClock
from common.delta import apply_delta
from common.ids import layer_hash
from common.manifest import INT8, Layer, Manifest
from common.messages import Fetch, LayerPart
from common.weights import find_tensors, read_weights
from edge.download import Download, LayerFolder

CLASSES = ("normal", "tear")
SIDE, WIDTH, DIMENSION = 12, 24, 32
Move = Callable[[str, NDArray[np.float32]], NDArray[np.floating]]
PICTURES = [np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for seed in range(40)]


def backbone(move: Move = lambda _, values: values) -> bytes:
    """Four quantised convolutions behind a float one, batch norms in nodes; `move` changes the weights by name."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], keys.IMAGE
    shapes = [(WIDTH, 3, 3, 3), (WIDTH, WIDTH, 1, 1), (WIDTH, 1, 3, 3), (WIDTH, WIDTH, 1, 1), (DIMENSION, WIDTH, 1, 1)]
    for number, shape in enumerate(shapes):
        values = {f"w{number}": rng.normal(0, 1.2 / np.sqrt(np.prod(shape[1:])), shape)}
        norm = {"scale": rng.uniform(0.5, 2, shape[0]), "shift": rng.normal(0.5, 0.3, shape[0])}
        norm |= {"mean": rng.normal(0, 0.1, shape[0]), "variance": np.ones(shape[0])}
        values |= {f"bn{number}.{key}": value for key, value in norm.items()}
        weights += [
            numpy_helper.from_array(move(name, value.astype(np.float32)).astype(np.float32), name)
            for name, value in values.items()
        ]
        size, groups = shape[2], WIDTH if shape[1] == 1 else 1
        nodes += [
            helper.make_node("Conv", [x, f"w{number}"], [f"c{number}"], group=groups, pads=[size // 2] * 4),
            helper.make_node("BatchNormalization", [f"c{number}", *list(values)[1:]], [f"b{number}"]),
            helper.make_node("Relu", [f"b{number}"], [f"r{number}"]),
        ]
        x = f"r{number}"
    nodes.append(helper.make_node("ReduceMean", [x], [keys.EMBEDDING], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", DIMENSION])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    metadata = {keys.KIND: "backbone", keys.INPUT_PX: str(SIDE), keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    helper.set_model_props(model, metadata)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def adapted(name: str, values: NDArray[np.float32]) -> NDArray[np.floating]:
    """As a fine-tune of the adapter: other scales and shifts of the batch norms."""
    rng = np.random.default_rng(list(name.encode()))
    return values * rng.normal(1, 0.03, values.shape) if ".s" in name else values


def tuned(name: str, values: NDArray[np.float32]) -> NDArray[np.floating]:
    """As a fine-tune of every weight."""
    noise = np.random.default_rng(1).normal(0, 1, values.shape)
    return values + noise * 0.02 * values.std() if name.startswith("w") else values


class Files:
    """Backbones and variants in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, data: bytes) -> Backbone:
        path = self._folder / layer_hash(data)
        path.write_bytes(data)
        return Backbone.open(path)

    def embed(self, data: bytes) -> NDArray[np.float32]:
        return embed_all(self.open(data), PICTURES)

    def int8(self, data: bytes) -> bytes:
        return quantise(data, PICTURES, self.open(data))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def requantiser(files: Files, old: bytes, new: bytes, published: bytes) -> Requantiser:
    tensors = (files.open(new).tensor(picture) for picture in PICTURES)
    return Requantiser(published, fold(old), fold(new), layer_hash(new), input_moments(fold(new), tensors))


def codes_changed(one: bytes, other: bytes) -> int:
    places = find_tensors(one)
    weights = [place for place in places.values() if place.dtype == "i1"]
    assert weights
    return sum(int((place.read(one) != place.read(other)).sum()) for place in weights)


def distance(files: Files, variant: bytes, data: bytes) -> float:
    return float(np.linalg.norm(files.embed(variant) - files.embed(data)))


@pytest.mark.parametrize("change", [adapted, tuned])
def test_the_delta_makes_exactly_the_variant_that_was_judged(files: Files, change: Move) -> None:
    old, new = backbone(), backbone(change)
    published = files.int8(old)
    carried = requantiser(files, old, new, published)
    for step in STEPS:
        made = carried.at(step)
        assert apply_delta(published, made.delta(published), len(made.data)) == made.data
        onnx.checker.check_model(onnx.load_model_from_string(made.data))
    variant = files.open(made.data)
    assert (variant.precision, variant.stands_for) == (INT8, layer_hash(new))


def test_a_scaled_channel_keeps_its_codes(files: Files) -> None:
    old, new = backbone(), backbone(adapted)
    published = files.int8(old)
    made = requantiser(files, old, new, published).at(8)
    assert codes_changed(published, made.data) < 5
    assert distance(files, made.data, new) < 0.5 * distance(files, published, new)
    before, after = read_weights(published), read_weights(made.data)
    scales = [name for name in before if name.endswith("_scale") and before[name].size > 1]
    assert any((before[name] != after[name]).any() for name in scales)
    for name in (name.removesuffix("_quantized_scale") for name in scales if name.endswith("_quantized_scale")):
        mine = next(other for other in scales if other.startswith(name.replace("BN_B_bn", "W_w").split(".")[0]))
        np.testing.assert_allclose(
            after[mine] / before[mine],
            after[f"{name}_quantized_scale"] / before[f"{name}_quantized_scale"],
            rtol=1e-5,
            err_msg="a kernel for whole numbers is used only where these two agree",
        )


def test_smaller_steps_are_nearer_to_float_and_cost_more(files: Files) -> None:
    old, new = backbone(), backbone(tuned)
    published = files.int8(old)
    carried = requantiser(files, old, new, published)
    made = [carried.at(step) for step in (8, 1)]
    far, near = (distance(files, item.data, new) for item in made)
    assert near < far
    assert near < 1.2 * distance(files, files.int8(new), new), "as near as one from scratch"
    assert codes_changed(published, made[0].data) < codes_changed(published, made[1].data)


def test_the_coarsest_that_passes_is_taken_and_none_when_none_does(files: Files) -> None:
    old, new = backbone(), backbone(tuned)
    carried = requantiser(files, old, new, files.int8(old))
    judged: list[bytes] = []

    def third_passes(data: bytes) -> bool:
        judged.append(data)
        return len(judged) == 3

    chosen = coarsest(carried, third_passes)
    assert chosen is not None
    assert (chosen.step, chosen.data) == (STEPS[2], judged[2])
    assert coarsest(carried, lambda _: False) is None


def test_another_graph_is_not_carried_over(files: Files) -> None:
    old = backbone()
    published = files.int8(old)
    assert unlike(published, fold(old), fold(backbone(tuned))) == ""
    wider = helper.make_model(
        helper.make_graph([], "other", [], [], [numpy_helper.from_array(np.ones(3, np.float32), "w")])
    ).SerializeToString()
    assert "more than their weights" in unlike(published, fold(old), wider)
    assert "no weights like" in unlike(published, wider, wider)


def head_of(directions: Sequence[float]) -> HeadWeights:
    wanted = np.zeros((2, DIMENSION))
    wanted[1, : len(directions)] = directions
    return HeadWeights(CLASSES, wanted, np.zeros(2), np.ones(2), np.eye(2))


def test_a_variant_may_not_be_worse_than_from_scratch_for_any_head() -> None:
    rng = np.random.default_rng(0)
    on_float = rng.normal(0, 1, (200, DIMENSION)).astype(np.float32)
    fresh, kept = (on_float + rng.normal(0, 0.05, on_float.shape).astype(np.float32) for _ in range(2))
    yardstick = Yardstick([head_of([1, -1])], on_float, fresh * 1.001)
    assert yardstick.holds(fresh)
    assert not yardstick.holds(on_float + 2 * (kept - on_float)), "further away"
    spoilt = on_float.copy()
    spoilt[:, 0] += 0.3
    assert np.linalg.norm(spoilt - on_float) < 2 * np.linalg.norm(fresh - on_float)
    wide = Yardstick([head_of([1, -1])], on_float, on_float + 2 * (fresh - on_float))
    assert not wide.holds(spoilt), "near, but where the head looks"
    assert Yardstick([head_of([0, -1])], on_float, on_float + 2 * (fresh - on_float)).holds(spoilt)


def test_without_a_step_that_passes_it_is_said_so(files: Files) -> None:
    old, new = backbone(), backbone(tuned)
    published, fresh = files.int8(old), files.int8(new)
    kept = keep_scales(published, old, new, fresh, [], PICTURES, PICTURES)
    assert isinstance(kept, Requantised)
    assert "as near to float" in str(keep_scales(published, old, new, new, [], PICTURES, PICTURES))


# --- from the centre to a gateway -----------------------------------------------------------------


def picture(number: int) -> NDArray[np.uint8]:
    """Bright and dark ones in turn, with noise."""
    noisy = np.random.default_rng(number).normal(70 if number % 2 else 160, 30, (SIDE, SIDE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


class Centre:
    """A centre whose releases carry an int8 variant, and the layers of a gateway that follows them."""

    def __init__(self, folder: Path, store: Store) -> None:
        clock = SystemClock()
        self.registry = Registry(folder / "layers", store, Repository.open(folder / "trust", clock), clock)
        self.registry.set_backbone(backbone())
        self.pictures = folder / "pictures"
        for number in range(240):
            kind = CLASSES[number % 2]
            (self.pictures / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(self.pictures / kind / f"{number}.png"), picture(number))
        (folder / "datasets").mkdir()
        self.catalogue = Catalogue(folder / "datasets")
        path = self.registry.backbone()[1]
        self.catalogue.add("base", "belt", read_folder(self.pictures), Backbone.open(path))
        self.trainer = Trainer(store, self.catalogue, self.registry, LearningSettings())
        self.layers = LayerFolder(folder / "gateway")
        self.bases: dict[str, str] = {}
        """Layer -> what it came as a delta of."""
        self.received: Counter[str] = Counter()

    def release(self, note: str, onto: Layer | None = None) -> Manifest:
        """Train, publish, and have the gateway fetch it."""
        assert self.trainer.run(note, onto).release_id
        manifest = self.registry.active()
        assert manifest is not None
        parts: list[LayerPart] = []

        def request(fetch: Fetch) -> bool:
            parts.append(self.registry.part(fetch))
            return True

        download = Download(manifest.layers_for("north"), self.layers, SystemClock(), request)
        while not download.done:
            download.step()
            part = parts.pop()
            self.bases[part.layer] = part.base
            self.received[part.layer] += len(part.data)
            download.take(part)
        return manifest

    def quantise(self) -> MadeVariant:
        return make_variant(self.registry, self.catalogue, [self.pictures])


def test_a_gateway_gets_the_next_variant_as_a_small_delta(tmp_path: Path, store: Store) -> None:
    centre = Centre(tmp_path, store)
    parent = centre.release("float only").backbone
    first = centre.quantise()
    assert first.succession.base is None
    assert "no variant" in str(first.summary()["from_scratch"])
    (variant,) = centre.release("with a variant").variants
    assert variant.layer == first.layer

    layer = centre.registry.put(backbone(adapted))
    centre.registry.note(layer, "backbone", parent=parent.hash)
    assert centre.release("another backbone", layer).variants == ()
    second = centre.quantise()
    assert (second.succession.base, second.succession.why) == (first.layer, "")
    assert second.succession.step in STEPS
    (variant,) = centre.release("with the variant of that").variants
    assert variant.layer == second.layer
    assert centre.bases[second.layer.hash] == first.layer.hash, "it was asked for and sent as a delta"
    assert centre.received[second.layer.hash] == len(second.succession.delta) < 0.5 * second.layer.size_bytes
    data = centre.layers.path(second.layer.hash).read_bytes()
    assert layer_hash(data) == second.layer.hash
    assert data == centre.registry.layer_path(second.layer.hash).read_bytes()


def test_a_variant_whose_files_are_gone_is_made_from_scratch(tmp_path: Path, store: Store) -> None:
    centre = Centre(tmp_path, store)
    parent = centre.release("float only").backbone
    first = centre.quantise()
    centre.release("with a variant")
    layer = centre.registry.put(backbone(adapted))
    centre.registry.note(layer, "backbone", parent=parent.hash)
    assert centre.registry.variant_before(layer.hash, INT8) == (parent.hash, first.layer)
    assert centre.registry.variant_before(parent.hash, INT8) is None
    centre.registry.layer_path(first.layer.hash).unlink()
    assert centre.registry.variant_before(layer.hash, INT8) is None


def test_after_a_fine_tune_the_command_says_what_the_next_variant_weighs(tmp_path: Path) -> None:
    for number in range(160):
        folder = tmp_path / "pictures" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), picture(number))
    layers, layer = tmp_path / "data" / "layers", backbone()
    layers.mkdir(parents=True)
    (layers / layer_hash(layer)).write_bytes(layer)
    set_default_backbone(layers, layer_hash(layer))
    (tmp_path / "cloud.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n')

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--config", str(tmp_path / "cloud.toml")])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    run("dataset", "add", str(tmp_path / "pictures"), "--scenario", "belt")
    run("train")
    first = json.loads(run("quantise", str(tmp_path / "pictures"), "--json"))
    assert (first["base"], first["delta_bytes"]) == ("", 0)
    run("train")
    run("finetune", "--epochs", "1", "--rate", "0.002")
    said = run("quantise", str(tmp_path / "pictures"))
    assert re.search(rf"as a delta from variant {first['layer'][:12]}: \d+ bytes \((scales kept|from scratch)", said), (
        said
    )

"""The model of a gateway: many heads on one pass, and a clear sentence for every file that is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from common import manifest as keys
from common.backbone import Backbone
from common.errors import OperatorError, WireError
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from edge.perception import Head, cut_zone, load_model

PICTURE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)


class Shelf:
    """Layer files by hash, and manifests over them."""

    def __init__(self, folder: Path, backbone: bytes, head: Callable[..., bytes]) -> None:
        self.folder, self.make_head = folder, head
        self.backbone = self.put(backbone)

    def put(self, data: bytes) -> Layer:
        (self.folder / layer_hash(data)).write_bytes(data)
        return Layer(layer_hash(data), len(data))

    def manifest(self, heads: dict[str, dict[str, Layer]], backbone: Layer | None = None) -> Manifest:
        scenarios = tuple(Scenario(name, ("normal", "tear"), "normal", own) for name, own in heads.items())
        return Manifest(
            sequence=1,
            created_at_ns=0,
            expires_at_ns=1,
            minimum_agent="0.1.0",
            backbone=backbone or self.backbone,
            scenarios=scenarios,
        )

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def shelf(tmp_path: Path, tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]) -> Shelf:
    return Shelf(tmp_path, tiny_backbone(), tiny_head)


def test_many_heads_answer_on_one_pass_of_the_backbone(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"scenario-{number}" for number in range(6)]
    heads = {
        name: {SHARED: shelf.put(shelf.make_head(shelf.backbone.hash, scenario=name, seed=number))}
        for number, name in enumerate(names)
    }
    model = load_model("r1", shelf.manifest(heads), shelf.path, "north")
    passes = []
    embed = Backbone.embed
    monkeypatch.setattr(Backbone, "embed", lambda self, image: passes.append(1) or embed(self, image))
    view = model.look(PICTURE)
    assert passes == [1]
    assert [prediction.scenario for prediction in view.predictions] == names
    for prediction in view.predictions:
        assert sum(prediction.probabilities) == pytest.approx(1.0, abs=1e-5)
        assert np.isfinite(prediction.novelty)
    assert len({prediction.probabilities for prediction in view.predictions}) == 6, "each its own head"


def test_stacked_heads_say_what_their_files_say(shelf: Shelf) -> None:
    layers = [
        shelf.put(
            shelf.make_head(
                shelf.backbone.hash,
                scenario=f"scenario-{n}",
                seed=n,
                classes=2 + n % 4,
                form="ridge" if n % 3 else "lda",
            )
        )
        for n in range(9)
    ]
    assert all(Head.open(shelf.path(layer.hash), shelf.backbone.hash).stackable() for layer in layers)
    model = load_model(
        "r1", shelf.manifest({f"scenario-{n}": {SHARED: item} for n, item in enumerate(layers)}), shelf.path, "north"
    )
    rng = np.random.default_rng(3)
    for _ in range(20):
        embedding = rng.normal(0, 3, 12).astype(np.float32)
        for said, layer in zip(model.judge(embedding).predictions, layers, strict=True):
            alone = Head.open(shelf.path(layer.hash), shelf.backbone.hash).predict(embedding)
            assert (said.scenario, said.classes) == (alone.scenario, alone.classes)
            assert said.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
            assert said.novelty == pytest.approx(alone.novelty, rel=1e-4, abs=1e-3)


def test_a_head_that_computes_something_else_runs_in_a_session_of_its_own(shelf: Shelf) -> None:
    model = onnx.load_model_from_string(shelf.make_head(shelf.backbone.hash, scenario="odd", classes=3))
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.input[0] = "t"  # not what its numbers say: the constants are left out
    odd, even = shelf.put(model.SerializeToString()), shelf.put(shelf.make_head(shelf.backbone.hash, scenario="even"))
    manifest = shelf.manifest({"odd": {SHARED: odd}, "even": {SHARED: even}})
    view = load_model("r1", manifest, shelf.path, "north").look(PICTURE)
    assert [item.scenario for item in view.predictions] == ["odd", "even"]
    alone = Head.open(shelf.path(odd.hash), shelf.backbone.hash)
    assert alone.stackable() is None
    assert view.predictions[0] == alone.predict(view.embedding)


def test_a_head_of_any_other_make_still_runs(shelf: Shelf) -> None:
    model = onnx.load_model_from_string(shelf.make_head(shelf.backbone.hash))
    kept = [item for item in model.metadata_props if item.key != keys.FORM]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    old, new = shelf.put(model.SerializeToString()), shelf.put(shelf.make_head(shelf.backbone.hash))
    views = [
        load_model("r1", shelf.manifest({"belt": {SHARED: layer}}), shelf.path, "north").look(PICTURE)
        for layer in (old, new)
    ]
    assert views[0].predictions[0].probabilities == pytest.approx(views[1].predictions[0].probabilities, abs=1e-5)


def test_a_site_runs_its_own_head_and_the_others_the_shared_one(shelf: Shelf) -> None:
    own, shared = (shelf.put(shelf.make_head(shelf.backbone.hash, seed=seed)) for seed in (1, 2))
    manifest = shelf.manifest({"belt": {"north": own, SHARED: shared}})
    north, south = (load_model("r1", manifest, shelf.path, site) for site in ("north", "south"))
    assert north.look(PICTURE).predictions != south.look(PICTURE).predictions
    again = load_model("r2", manifest, shelf.path, "north", north.backbone)
    assert again.backbone is north.backbone, "a head-only release does not load the backbone again"


def test_what_is_wrong_is_named_by_file(shelf: Shelf, tiny_backbone: Callable[..., bytes]) -> None:
    other = shelf.put(tiny_backbone(seed=9))
    foreign = shelf.put(shelf.make_head(other.hash))
    no_model = shelf.put(b"this is no ONNX model")
    head = shelf.put(shelf.make_head(shelf.backbone.hash))
    other_dimension = shelf.put(shelf.make_head(shelf.backbone.hash, dimension=5))
    missing = Layer("f" * 64, 10)
    cases: list[tuple[Manifest, list[str]]] = [
        (shelf.manifest({"belt": {SHARED: no_model}}), [no_model.hash, "not an ONNX model"]),
        (shelf.manifest({"belt": {SHARED: head}}, backbone=no_model), [no_model.hash, "not an ONNX model"]),
        (shelf.manifest({"belt": {SHARED: foreign}}), [foreign.hash, other.hash[:12], shelf.backbone.hash[:12]]),
        (shelf.manifest({"belt": {SHARED: shelf.backbone}}), [shelf.backbone.hash, "should be a head"]),
        (shelf.manifest({"belt": {SHARED: head}}, backbone=head), [head.hash, "should be a backbone"]),
        (shelf.manifest({"helmet": {SHARED: head}}), [head.hash, "belt", "helmet"]),
        (shelf.manifest({"belt": {SHARED: missing}}), [missing.hash, "cannot read"]),
        (shelf.manifest({"belt": {SHARED: other_dimension}}), ["do not run together"]),
    ]
    for manifest, said in cases:
        with pytest.raises(OperatorError) as caught:
            load_model("r1", manifest, shelf.path, "north")
        assert all(part in str(caught.value) for part in said), str(caught.value)
        assert caught.value.hint


def test_bytes_that_do_not_match_their_hash_are_refused(shelf: Shelf) -> None:
    head = shelf.put(shelf.make_head(shelf.backbone.hash))
    other = shelf.make_head(shelf.backbone.hash, seed=5)
    shelf.path(head.hash).write_bytes(other)
    with pytest.raises(WireError, match="does not match its hash"):
        load_model("r1", shelf.manifest({"belt": {SHARED: head}}), shelf.path, "north")


def test_a_zone_is_cut_and_never_empty() -> None:
    assert cut_zone(PICTURE, None) is PICTURE
    assert cut_zone(PICTURE, (0.5, 0.0, 1.0, 0.5)).shape == (15, 20, 3)
    assert cut_zone(PICTURE, (0.999, 0.999, 1.0, 1.0)).size > 0

"""Which variant of a backbone a box runs: the fastest here, and never one that is not of this release."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from common import manifest as keys
from common.backbone import Backbone, open_session, time_pass_s
from common.errors import OperatorError
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario, Variant, decode_manifest, encode_manifest, release_id
from edge.perception import load_model
from edge.variants import choose_variant


class Shelf:
    def __init__(self, folder: Path, backbone: bytes, head: Callable[..., bytes]) -> None:
        self.folder = folder
        self.backbone = self.put(backbone)
        self.head = self.put(head(self.backbone.hash))

    def put(self, data: bytes) -> Layer:
        (self.folder / layer_hash(data)).write_bytes(data)
        return Layer(layer_hash(data), len(data))

    def path(self, name: str) -> Path:
        return self.folder / name

    def variant(self, data: bytes, stands_for: str, precision: str = "int8") -> Variant:
        model = onnx.load_model_from_string(data)
        for key, value in ((keys.PRECISION, precision), (keys.STANDS_FOR, stands_for)):
            model.metadata_props.add(key=key, value=value)
        return Variant(self.put(model.SerializeToString()), precision)

    def manifest(self, *variants: Variant) -> Manifest:
        return Manifest(
            sequence=1,
            created_at_ns=0,
            expires_at_ns=1,
            minimum_agent="0.1.0",
            backbone=self.backbone,
            scenarios=(Scenario("belt", ("normal", "tear"), "normal", {SHARED: self.head}),),
            variants=variants,
        )


@pytest.fixture
def shelf(tmp_path: Path, tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]) -> Shelf:
    return Shelf(tmp_path, tiny_backbone(), tiny_head)


@pytest.fixture
def int8(shelf: Shelf, tiny_backbone: Callable[..., bytes]) -> Variant:
    return shelf.variant(tiny_backbone(seed=1), shelf.backbone.hash)


@pytest.mark.parametrize(("int8_s", "is_chosen"), [(0.002, True), (0.0049, False), (0.009, False)])
def test_the_fastest_runs_if_it_is_worth_it(shelf: Shelf, int8: Variant, int8_s: float, is_chosen: bool) -> None:
    times = {"float": 0.005, "int8": int8_s}
    choice = choose_variant(
        shelf.manifest(int8), shelf.path, open_session, timer=lambda backbone: times[backbone.precision]
    )
    assert choice.hash == (int8.layer.hash if is_chosen else "")
    assert choice.reason == f"float takes 5.0 ms, int8 takes {1e3 * int8_s:.1f} ms"


def test_the_trial_is_a_real_one(shelf: Shelf, int8: Variant) -> None:
    assert 0 < time_pass_s(Backbone.open(shelf.path(shelf.backbone.hash))) < 1
    choice = choose_variant(shelf.manifest(int8), shelf.path, open_session)
    assert "float takes" in choice.reason
    assert "int8 takes" in choice.reason


def test_what_is_asked_for_runs_where_the_release_has_it(shelf: Shelf, int8: Variant) -> None:
    for wanted, chosen in (("int8", int8.layer.hash), ("float", "")):
        assert choose_variant(shelf.manifest(int8), shelf.path, open_session, wanted).hash == chosen
    missing = choose_variant(shelf.manifest(), shelf.path, open_session, "int8")
    assert (missing.hash, missing.reason) == ("", "the release has no variant of its backbone")


def test_a_variant_that_is_not_of_this_backbone_is_left_alone(
    shelf: Shelf, tiny_backbone: Callable[..., bytes]
) -> None:
    foreign = shelf.variant(tiny_backbone(seed=1), "f" * 64)
    broken = Variant(shelf.put(b"no model"), "int8")
    choice = choose_variant(shelf.manifest(foreign, broken), shelf.path, open_session)
    assert choice.hash == ""
    assert choice.reason.count("does not load") == 2
    with pytest.raises(OperatorError, match="is a variant of ffff"):
        load_model("r1", shelf.manifest(foreign), shelf.path, "north", variant=foreign.layer.hash)


def test_heads_stand_on_the_float_backbone_whichever_variant_runs(shelf: Shelf, int8: Variant) -> None:
    manifest = shelf.manifest(int8)
    model = load_model("r1", manifest, shelf.path, "north", variant=int8.layer.hash)
    assert model.backbone.hash == int8.layer.hash
    assert model.backbone.stands_for == manifest.backbone.hash
    other = load_model("r1", manifest, shelf.path, "north", model.backbone)
    assert other.backbone.hash == manifest.backbone.hash, "a variant in memory is not taken for the float one"
    again = load_model("r2", manifest, shelf.path, "north", model.backbone, variant=int8.layer.hash)
    assert again.backbone is model.backbone


def test_a_release_without_variants_keeps_the_bytes_and_the_name_it_had(shelf: Shelf, int8: Variant) -> None:
    plain, more = shelf.manifest(), shelf.manifest(int8)
    assert b"variants" not in encode_manifest(plain)
    assert b"detectors" not in encode_manifest(plain)
    assert release_id(plain) != release_id(more)
    assert decode_manifest(encode_manifest(more)) == more
    assert int8.layer in more.layers_for("north")

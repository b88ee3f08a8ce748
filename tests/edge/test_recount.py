"""After a change of the backbone, samples whose pictures stayed here are looked at again."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from common.backbone import Backbone
from common.contribution import Request
from common.manifest import Layer, Manifest
from common.messages import Sample
from edge.contributor import contribute
from edge.exemplars import Exemplars
from edge.perception import Model
from edge.recount import AT_ONCE, recount


def model_on(path: Path, data: bytes) -> Model:
    path.write_bytes(data)
    backbone = Backbone.open(path)
    layer = Layer(backbone.hash, len(data))
    manifest = Manifest(sequence=2, created_at_ns=0, expires_at_ns=1, minimum_agent="0", backbone=layer, scenarios=())
    return Model("r2", manifest, backbone, ())


def test_pictures_are_looked_at_again_and_labelled_ones_first(
    tmp_path: Path, make_sample: Callable[..., Sample], tiny_backbone: Callable[..., bytes]
) -> None:
    exemplars = Exemplars.open(tmp_path / "exemplars.db")
    pictures = [np.random.default_rng(n).integers(0, 255, (8, 8, 3), dtype=np.uint8) for n in range(7)]
    samples = [make_sample(n, jpeg=cv2.imencode(".jpg", picture)[1].tobytes()) for n, picture in enumerate(pictures)]
    for sample in samples[:-1]:
        exemplars.remember(sample, keep_picture=True)
    exemplars.remember(samples[-1], keep_picture=False)  # its picture went to the centre
    exemplars.label({samples[5].sample_id: {"belt": "tear"}, samples[6].sample_id: {"belt": "tear"}})
    model = model_on(tmp_path / "new.onnx", tiny_backbone(seed=3))
    assert exemplars.labelled("belt", model.backbone.hash)[0] == []

    assert recount(exemplars, model) == AT_ONCE
    names, embeddings, labels = exemplars.labelled("belt", model.backbone.hash)
    assert (names, labels) == ([samples[5].sample_id], ["tear"])
    seen = cv2.imdecode(np.frombuffer(samples[5].jpeg, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_allclose(embeddings[0], model.backbone.embed(np.asarray(seen, np.uint8)), rtol=1e-2, atol=1e-2)
    assert recount(exemplars, model) == 2
    assert recount(exemplars, model) == 0, "what has no picture here is counted at the centre"
    exemplars.close()


def test_a_damaged_picture_does_not_hold_up_the_others(
    tmp_path: Path, make_sample: Callable[..., Sample], tiny_backbone: Callable[..., bytes]
) -> None:
    exemplars = Exemplars.open(tmp_path / "exemplars.db")
    for number in range(AT_ONCE + 1):
        exemplars.remember(make_sample(number, jpeg=b"no picture"), keep_picture=True)
    model = model_on(tmp_path / "new.onnx", tiny_backbone(seed=3))
    assert [recount(exemplars, model) for _ in range(3)] == [AT_ONCE, 1, 0]
    exemplars.close()


def test_until_then_a_round_on_the_new_backbone_gets_what_is_done_and_no_more(
    tmp_path: Path, make_sample: Callable[..., Sample], tiny_backbone: Callable[..., bytes]
) -> None:
    exemplars = Exemplars.open(tmp_path / "exemplars.db")
    model = model_on(tmp_path / "new.onnx", tiny_backbone(seed=3))
    request = Request(model.backbone.hash, {"belt": ("normal", "tear")}, {})
    for number in range(6):
        picture = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        sample = make_sample(number, jpeg=cv2.imencode(".jpg", picture)[1].tobytes())
        exemplars.remember(sample, keep_picture=True)
        exemplars.label({sample.sample_id: {"belt": "tear" if number % 2 else "normal"}})
    counted = []
    for _ in range(3):
        parts, _lost = contribute(exemplars, request, 0)
        counted.append(len(parts["belt"][1]) if parts else 0)
        recount(exemplars, model)
    assert counted == [0, 4, 6]
    exemplars.close()

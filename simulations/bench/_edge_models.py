"""Models for the benchmarks of the edge: the default backbone as it is and as int8, and a head for a footage.

The same head recipe for both: LDA on the same example pictures, embedded by the backbone it stands on.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper

from cloud.learning.export import export_default_backbone, export_head
from cloud.learning.heads import solve_lda
from common import manifest as keys
from common.backbone import Backbone
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from common.statistics import Statistics
from edge.perception import Model, load_model
from simulations.bench._footage import Example
from simulations.data import find_data

SCENARIO: Final = "watch"
NORMAL: Final = "normal"
EVENT: Final = "event"
SHRINKAGE: Final = 0.5
"""Strong: a few dozen examples in 1280 dimensions."""


def write_float_backbone(folder: Path) -> Path:
    """The default backbone, float32."""
    path = folder / "backbone-float.onnx"
    path.write_bytes(export_default_backbone())
    return path


def write_int8_backbone(folder: Path) -> Path:
    """The static int8 (QDQ) classifier of the data folder, cut after the pooled features like the default backbone.

    Raises:
        OperatorError: the data folder does not hold it.
    """
    source = find_data("backbone-efficientnet-lite0", "efficientnet_lite0_int8_qdq.onnx")
    model = onnx.load(source)
    graph = model.graph
    end = next(index for index, node in enumerate(graph.node) if node.op_type == "GlobalAveragePool")
    pooled = graph.node[end].output[0]
    del graph.node[end + 1 :]
    graph.node.append(helper.make_node("Flatten", [pooled], [keys.EMBEDDING], axis=1))
    for node in graph.node:
        node.input[:] = [keys.IMAGE if name == graph.input[0].name else name for name in node.input]
    graph.input[0].name = keys.IMAGE
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(keys.EMBEDDING, onnx.TensorProto.FLOAT, ["n", 1280]))
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    helper.set_model_props(
        model, {keys.KIND: "backbone", keys.INPUT_PX: "224", keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    )
    path = folder / "backbone-int8.onnx"
    onnx.save(model, path)
    return path


def make_model(folder: Path, backbone_path: Path, examples: Sequence[Example], name: str) -> Model:
    """A release of one scenario, its head fitted on the examples."""
    backbone = Backbone.open(backbone_path)
    embeddings = np.stack([backbone.embed(example.image) for example in examples]).astype(np.float64)
    labels = [EVENT if example.is_event else NORMAL for example in examples]
    head = export_head(
        solve_lda(Statistics.of((NORMAL, EVENT), embeddings, labels), SHRINKAGE), SCENARIO, backbone.hash
    )
    head_path = folder / f"head-{name}-{backbone_path.stem}.onnx"
    head_path.write_bytes(head)
    layer = Layer(layer_hash(head), len(head))
    now_ns = time.time_ns()
    manifest = Manifest(
        sequence=1,
        created_at_ns=now_ns,
        expires_at_ns=now_ns + 10**15,
        minimum_agent="0.1.0",
        backbone=Layer(backbone.hash, backbone_path.stat().st_size),
        scenarios=(Scenario(SCENARIO, (NORMAL, EVENT), NORMAL, {SHARED: layer}),),
    )
    paths = {backbone.hash: backbone_path, layer.hash: head_path}
    return load_model(f"bench-{backbone_path.stem}", manifest, paths.__getitem__, "bench", backbone)

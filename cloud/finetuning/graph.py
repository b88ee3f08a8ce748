"""An ONNX backbone as a torch module: the very graph that gateways run, with gradients.

Fine-tuning needs no architecture code, so an adopted backbone is tuned like ours, and a tuned one again. What comes out
is the same file with other numbers in place: batch-norm stays in nodes (folded, a change of it would touch every
convolution), names, metadata and every untouched byte stay, and the delta between the two is as small as the change.
Batch-norm statistics are frozen: updated on a few hundred pictures they cost 15 points at a new site, measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody names it
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from common import manifest as keys
from common.errors import OperatorError, WireError
from common.weights import find_weights

Attributes = Mapping[str, Any]
Operation = Callable[[list[Any], Attributes], torch.Tensor]
Step = tuple[onnx.NodeProto, Attributes, Operation]


class Depth(StrEnum):
    """What is trained."""

    ADAPTER = "adapter"
    """Scale and shift of every batch-norm: the L1 adapter, a hundredth of the weights."""
    BLOCK = "block"
    """Every weight behind the last place where branches meet: the last block of the usual mobile networks."""
    FULL = "full"


class Network(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """A backbone under gradients: pictures (n, 3, px, px), scaled as the backbone declares -> embeddings (n, d).

    Args:
        data: the layer's file.
        depth: whose weights get gradients.

    Raises:
        OperatorError: the graph has an operator that is not known here, or nothing to train at this depth.
    """

    def __init__(self, data: bytes, depth: Depth) -> None:
        super().__init__()
        model = onnx.load_model_from_string(data)
        weights = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        self._data = data
        self._steps, constants = _plan(list(model.graph.node), weights)
        self._constants = {name: _tensor(value) for name, value in constants.items()}
        self.trained = _chosen(list(model.graph.node), weights, depth)
        """Names of the trained weights, in the order of the graph."""
        if not self.trained:
            raise OperatorError(
                f"this backbone has no weights to train at depth {depth.value}",
                "Its batch-norm was folded away: use --depth block, or full." if depth is Depth.ADAPTER else "",
            )
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(self._constants.pop(name).clone()) for name in self.trained]
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Embeddings."""
        values: dict[str, Any] = {**self._constants, **dict(zip(self.trained, self.weights, strict=True))}
        values[keys.IMAGE] = image.contiguous(memory_format=torch.channels_last)  # a fifth faster on a CPU
        for node, attributes, operation in self._steps:
            values[node.output[0]] = operation([values[name] if name else None for name in node.input], attributes)
        found: torch.Tensor = values[keys.EMBEDDING]
        return found

    def to(self, device: Any) -> "Network":
        """Constants move along: they are no parameters, since most are not weights."""
        super().to(device)
        self._constants = {
            name: value.to(device)
            if value.is_floating_point() and value.ndim
            else value  # bounds and axes are read here
            for name, value in self._constants.items()
        }
        return self

    def values(self) -> dict[str, NDArray[np.float32]]:
        """The trained weights, by name."""
        return {
            name: weight.detach().cpu().numpy().copy() for name, weight in zip(self.trained, self.weights, strict=True)
        }

    def take(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Set the trained weights.

        Raises:
            WireError: other names or shapes, or values that are not finite.
        """
        if {name: value.shape for name, value in values.items()} != {
            name: tuple(weight.shape) for name, weight in zip(self.trained, self.weights, strict=True)
        } or not all(np.isfinite(value).all() for value in values.values()):
            raise WireError("these are not the weights that are trained here")
        with torch.no_grad():
            for name, weight in zip(self.trained, self.weights, strict=True):
                weight.copy_(torch.from_numpy(np.array(values[name], np.float32)))

    def layer(self) -> bytes:
        """The layer's file with the trained numbers in place."""
        made = bytearray(self._data)
        places = find_weights(self._data)
        for name, value in self.values().items():
            made[places[name].offset : places[name].end] = value.astype("<f4").tobytes()
        return bytes(made)


def _plan(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, NDArray[Any]]
) -> tuple[list[Step], dict[str, NDArray[Any]]]:
    """What runs for every picture, and all that is known before: exporters spell out paddings in a dozen nodes."""
    constants = dict(weights)
    steps: list[Step] = []
    for node in nodes:
        if all(name in constants for name in node.input if name):
            found = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input if name})
            constants |= dict(zip(node.output, found, strict=True))
        elif node.op_type in _OPERATIONS:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            steps.append((node, attributes, _OPERATIONS[node.op_type]))
        else:
            raise OperatorError(
                f"the backbone has the operator {node.op_type}, which cannot be trained here",
                f"Known are {', '.join(sorted(_OPERATIONS))}; heads on the frozen backbone need none of them.",
            )
    used = {name for node, _, _ in steps for name in node.input}
    return steps, {name: value for name, value in constants.items() if name in used}


def _chosen(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, NDArray[Any]], depth: Depth) -> list[str]:
    """Names of the weights that are trained at a depth."""
    if depth is not Depth.BLOCK:
        return _weights_of(nodes, weights, depth)
    found = (_weights_of(nodes[place + 1 :], weights, depth) for place in reversed(_meetings(nodes)))
    return next((names for names in found if names), [])


def _meetings(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """Where branches of the graph meet, from the beginning (-1) on."""
    fed, meets = {keys.IMAGE}, [-1]  # what depends on the picture
    for number, node in enumerate(nodes):
        from_picture = [name for name in node.input if name in fed]
        if from_picture:
            fed |= set(node.output)
        if node.op_type in ("Add", "Concat") and len(from_picture) > 1:
            meets.append(number)
    return meets


def _weights_of(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, NDArray[Any]], depth: Depth) -> list[str]:
    chosen: dict[str, None] = {}
    for node in nodes:
        if node.op_type == "BatchNormalization":
            names = node.input[1:3]  # scale and shift; the statistics stay
        elif depth is not Depth.ADAPTER and node.op_type in ("Conv", "Gemm", "MatMul"):
            names = node.input[1:]
        else:
            continue
        chosen |= dict.fromkeys(name for name in names if name in weights and weights[name].dtype == np.float32)
    return list(chosen)


def _tensor(value: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(value))


# --- operators: inputs and attributes of an ONNX node -> its first output -----------------------------


def _ints(value: torch.Tensor) -> list[int]:
    return [int(item) for item in value.flatten()]


def _padded(x: torch.Tensor, attributes: Attributes, fill: float) -> torch.Tensor:
    """The picture with the pads of a convolution or pool: [top, left, bottom, right]."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise OperatorError("the backbone pads by auto_pad", "Export it with explicit pads.")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return F.pad(x, (left, right, top, bottom), value=fill) if any((top, left, bottom, right)) else x


def _conv(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    x, weight, *bias = inputs
    strides, dilations = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    padded = _padded(x, attributes, 0.0)
    return F.conv2d(padded, weight, *bias, stride=strides, dilation=dilations, groups=attributes.get("group", 1))


def _batch_norm(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    x, scale, shift, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=attributes.get("epsilon", 1e-5))


def _clip(inputs: list[Any], _: Attributes) -> torch.Tensor:
    x, low, high = [*inputs, None, None][:3]
    if low is not None and high is not None:
        return F.hardtanh(x, low.item(), high.item())  # clamp has a gradient of four operations
    return torch.clamp(x, None if low is None else low.item(), None if high is None else high.item())


def _pad(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    x, pads = inputs[0], _ints(inputs[1])
    fill = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    if attributes.get("mode", b"constant") != b"constant" or len(inputs) > 3:
        raise OperatorError("the backbone pads by something other than a constant", "Export it with constant pads.")
    half = len(pads) // 2
    ends = [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    return F.pad(x, ends, value=fill)


def _max_pool(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    x = _padded(inputs[0], attributes, -math.inf)
    ceil = bool(attributes.get("ceil_mode", 0))
    return F.max_pool2d(x, attributes["kernel_shape"], attributes.get("strides", (1, 1)), ceil_mode=ceil)


def _gemm(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    a, b, *c = inputs
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product + attributes.get("beta", 1.0) * c[0] if c else product


def _mean(inputs: list[Any], attributes: Attributes) -> torch.Tensor:
    axes = _ints(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else list(attributes["axes"])
    return inputs[0].mean(axes, keepdim=bool(attributes.get("keepdims", 1)))


def _reshape(inputs: list[Any], _: Attributes) -> torch.Tensor:
    x, wanted = inputs[0], _ints(inputs[1])
    shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if shape[0] == 1 and -1 not in shape[1:] and len(shape) > 1:
        shape[0] = -1  # exported for one picture at a time
    return x.reshape(shape)


def _slice(inputs: list[Any], _: Attributes) -> torch.Tensor:
    x, starts, ends = inputs[0], _ints(inputs[1]), _ints(inputs[2])
    axes = _ints(inputs[3]) if len(inputs) > 3 else list(range(len(starts)))
    strides = _ints(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    cut = [slice(None)] * x.ndim
    for axis, start, end, stride in zip(axes, starts, ends, strides, strict=True):
        cut[axis] = slice(start, end, stride)
    return x[tuple(cut)]


_OPERATIONS: dict[str, Operation] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(inputs, attributes["axis"]),
    "Conv": _conv,
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "Flatten": lambda inputs, attributes: inputs[0].flatten(attributes.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean((2, 3), keepdim=True),
    "HardSigmoid": lambda inputs, attributes: torch.clamp(
        attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": lambda inputs, _: F.hardswish(inputs[0]),
    "Identity": lambda inputs, _: inputs[0],
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": lambda inputs, _: torch.relu(inputs[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda inputs, _: torch.sigmoid(inputs[0]),
    "Slice": _slice,
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
}

"""On what models run: what works here, why, and what happens where a provider only seems to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto, helper

from common import backbone as backbones
from common.backbone import CPU, Backbone
from common.errors import OperatorError
from edge.doctor import check_compute
from edge.providers import NAMES, PROBE, Compute, rank

REAL = onnxruntime.InferenceSession


@pytest.fixture
def layer(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> Path:
    path = tmp_path / "backbone.onnx"
    path.write_bytes(tiny_backbone())
    return path


class Hardware:
    """ONNX Runtime on another box: offers more, and each provider loads and runs, or does not.

    Sessions are real ones on the CPU; only what they say of their providers, and their failures, are made up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **behaviour: str) -> None:
        self.tried: list[tuple[str, dict[str, Any]]] = []
        hardware = self

        class Session:
            def __init__(self, data: bytes, options: Any, providers: Sequence[Any], **rest: Any) -> None:
                assert rest == {"enable_fallback": 0}, "ONNX Runtime's own way back prints, and hides the reason"
                first = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
                hardware.tried.append(first)
                self.acts = behaviour.get(first[0].removesuffix("ExecutionProvider"), "runs")
                if self.acts == "raises":
                    raise RuntimeError("no such device")
                self.inner = REAL(data, options, providers=[CPU])
                self.providers = [CPU] if self.acts == "is silent" else [first[0], CPU]

            def get_providers(self) -> list[str]:
                return self.providers

            def run(self, *arguments: Any) -> Any:
                if self.acts == "breaks":
                    raise RuntimeError("kernel launch failed")
                return self.inner.run(*arguments)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

        monkeypatch.setattr(backbones.onnxruntime, "InferenceSession", Session)
        offered = [f"{name}ExecutionProvider" for name in behaviour]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*offered, CPU])


def test_here_the_cpu_runs_and_the_reason_is_said(layer: Path) -> None:
    compute = Compute()
    assert Backbone.open(layer, compute.open).dimension == 12
    choice = compute.choices["backbone"]
    assert choice.name == "cpu"
    assert "this onnxruntime offers" in choice.reason


def test_the_probe_is_a_model_of_one_node() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert model.SerializeToString() == PROBE


def test_the_first_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch, layer: Path, tmp_path: Path) -> None:
    hardware = Hardware(monkeypatch, CUDA="runs", Tensorrt="runs", OpenVINO="runs")
    compute = Compute(cache=tmp_path / "compiled")
    Backbone.open(layer, compute.open)
    assert compute.choices["backbone"].name == "tensorrt", "what compiles for the device before what drives it"
    (tried,) = hardware.tried
    assert tried[1]["trt_engine_cache_path"] == str(tmp_path / "compiled"), "compiled once, not at each start"
    assert (tmp_path / "compiled").is_dir()


@pytest.mark.parametrize(
    ("acts", "said"), [("raises", "no such device"), ("is silent", "does not load"), ("breaks", "kernel launch failed")]
)
def test_a_provider_that_only_seems_to_work_is_passed_over_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, layer: Path, acts: str, said: str
) -> None:
    Hardware(monkeypatch, Tensorrt=acts, CUDA="runs")
    compute = Compute()
    Backbone.open(layer, compute.open)
    choice = compute.choices["backbone"]
    assert choice.name == "cuda"
    assert choice.reason.startswith("tensorrt fails")
    assert said in choice.reason

    Hardware(monkeypatch, Tensorrt=acts, CUDA=acts)
    embedded = Backbone.open(layer, compute.open)
    assert compute.choices["backbone"].name == "cpu"
    assert embedded.dimension == 12, "and it runs"


def test_what_is_asked_for_is_taken_or_missed_aloud(monkeypatch: pytest.MonkeyPatch, layer: Path) -> None:
    Hardware(monkeypatch, CUDA="runs", OpenVINO="runs", CANN="is silent")
    for wanted, name, said in (
        ("openvino", "openvino", "first that runs"),
        ("cpu", "cpu", "asked for"),
        ("coreml", "cpu", "coreml is not in this onnxruntime, which offers CUDA, OpenVINO, CANN, CPU"),
        ("cann", "cpu", "cann fails"),
    ):
        compute = Compute(wanted)
        Backbone.open(layer, compute.open)
        choice = compute.choices["backbone"]
        assert choice.name == name
        assert said in choice.reason
        check = check_compute(wanted)
        assert check.ok == (wanted == name)
        assert bool(check.mend) != check.ok
        assert said in check.found


def test_a_broken_file_is_the_files_fault_on_any_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Hardware(monkeypatch, CUDA="runs")
    (tmp_path / "broken").write_bytes(b"this is no ONNX model")
    with pytest.raises(OperatorError, match="not an ONNX model"):
        Backbone.open(tmp_path / "broken", Compute().open)


def test_every_provider_has_its_place_and_the_cpu_is_last() -> None:
    every = onnxruntime.get_all_providers()
    ranked = rank("auto", every)
    assert [name for name, _ in ranked] == list(NAMES)
    assert ranked[-1] == ("cpu", CPU)
    assert {provider for _, provider in ranked} <= {*every, "ROCMExecutionProvider"}
    for name in NAMES:
        assert rank(name, every)[-1][0] == "cpu"
        assert rank(name, [CPU]) == [("cpu", CPU)]

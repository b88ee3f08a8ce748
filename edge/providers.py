"""On what a layer runs: GPU, NPU or CPU, chosen by what works here, with the reason.

ONNX Runtime offers execution providers by how it was built, which says nothing of whether their libraries and devices
are there: one that cannot load falls back silently, one that loads may fail at the first run. So a provider counts only
after it has opened the very layer and run it once; what fails is skipped with its reason, and the CPU is always last.
"""

import base64
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import onnxruntime

from common.backbone import CPU, Opened, Provider, create_session, open_session
from common.errors import EnvironmentFault

log = logging.getLogger(__name__)

ProviderName = Literal["tensorrt", "cuda", "rocm", "cann", "openvino", "coreml", "directml", "cpu"]
NAMES: Final[tuple[str, ...]] = get_args(ProviderName)
"""In the order in which they are tried: what compiles for a device first, the CPU last."""

_OFFERED_AS: Final = {
    "tensorrt": ("TensorrtExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "cann": ("CANNExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider",),
    "directml": ("DmlExecutionProvider",),
    "cpu": (CPU,),
}
"""ONNX Runtime's own names; of several the first that is offered."""

PROBE: Final = base64.b64decode(
    "CAk6NwoMCgF4EgF5IgRSZWx1EgVwcm9iZVoPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBE="
)
"""An ONNX model of one Relu: tells `doctor` whether a provider loads before there is a release."""

COMPILED: Final = "compiled"
"""Folder within `data_dir` for what a provider compiles."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a layer runs on, and why."""

    name: str
    reason: str


def rank(wanted: str, offered: Sequence[str]) -> list[tuple[str, str]]:
    """(name, ONNX Runtime's provider) to try in turn; the CPU is always among them.

    Args:
        wanted: `auto`, or one of `NAMES`.
        offered: what this ONNX Runtime was built with.
    """
    names = NAMES if wanted == "auto" else tuple(dict.fromkeys((wanted, "cpu")))
    found = []
    for name in names:
        provider = next((item for item in _OFFERED_AS[name] if item in offered), None)
        if provider:
            found.append((name, provider))
    return found


class Compute:
    """Opens layers on the best provider that works. One per process; remembers what was chosen and why.

    Args:
        wanted: `auto`, or the name of a provider.
        cache: folder for what a provider compiles for its device, so that it is compiled once.
    """

    def __init__(self, wanted: str = "auto", cache: Path | None = None) -> None:
        self._wanted, self._cache = wanted, cache
        self.choices: dict[str, Choice] = {}
        """What the last layer of each kind runs on."""

    def open(self, path: Path, kind: str) -> Opened:
        """As `common.backbone.open_session`, on the best provider that runs this layer.

        Raises:
            OperatorError: no such file, no ONNX model, or a model of another kind.
        """
        return self._best(kind, lambda providers: open_session(path, kind, providers), lambda opened: opened[0])

    def probe(self) -> Choice:
        """What a layer of any kind would run on, found out with a model of one node."""
        self._best("probe", lambda providers: create_session(PROBE, providers), lambda session: session)
        return self.choices["probe"]

    def _best(
        self,
        kind: str,
        make: Callable[[Sequence[Provider]], T],
        session_of: Callable[[T], onnxruntime.InferenceSession],
    ) -> T:
        offered = onnxruntime.get_available_providers()
        failed: list[str] = []
        for name, provider in rank(self._wanted, offered):
            if provider == CPU:
                break
            try:
                made = make((self._with_options(name, provider), CPU))
                _try(session_of(made), provider)
            except EnvironmentFault as error:
                failed.append(f"{name} fails: {error.message}")
                log.warning("%s cannot run %s: %s", name, f"a {kind}", error.message)
                continue
            self.choices[kind] = Choice(name, self._reason(name, failed, offered))
            return made
        made = make((CPU,))
        self.choices[kind] = Choice("cpu", self._reason("cpu", failed, offered))
        return made

    def _reason(self, name: str, failed: Sequence[str], offered: Sequence[str]) -> str:
        parts = list(failed)
        if self._wanted not in ("auto", name) and not failed:
            parts.append(f"{self._wanted} is not in this onnxruntime, which offers {_short(offered)}")
        elif name == "cpu" and not failed:
            parts.append(
                "it is asked for" if self._wanted == "cpu" else f"this onnxruntime offers {_short(offered)} only"
            )
        else:
            parts.append(f"{name} is the first that runs the layer")
        return "; ".join(parts)

    def _with_options(self, name: str, provider: str) -> Provider:
        if self._cache is None:
            return provider
        self._cache.mkdir(parents=True, exist_ok=True)
        folder = str(self._cache)
        options: dict[str, dict[str, Any]] = {
            "tensorrt": {"trt_engine_cache_enable": True, "trt_engine_cache_path": folder},
            "openvino": {"cache_dir": folder},
        }
        return (provider, options[name]) if name in options else provider


def _try(session: onnxruntime.InferenceSession, provider: str) -> None:
    """One run on zeros.

    Raises:
        EnvironmentFault: the provider was left out in silence, or its run fails.
    """
    if provider not in session.get_providers():
        raise EnvironmentFault(f"{provider} is offered but does not load", "Its libraries or its device are missing.")
    feeds = {
        item.name: np.zeros([size if isinstance(size, int) else 1 for size in item.shape], np.float32)
        for item in session.get_inputs()
    }
    try:
        session.run(None, feeds)
    except Exception as error:  # ONNX Runtime's errors share no public base but Exception
        raise EnvironmentFault(f"a run on {provider} fails ({error})", "Update its driver and libraries.") from error


def _short(offered: Sequence[str]) -> str:
    return ", ".join(name.removesuffix("ExecutionProvider") for name in offered)

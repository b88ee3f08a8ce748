"""The L0 backbone on ONNX Runtime, with its preprocessing: one definition for gateway and centre.

Embeddings only compare when both ends turn pixels into tensors in exactly the same way, so this is contract.
The one home of ONNX Runtime's session settings.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common import manifest as keys
from common.errors import EnvironmentFault, OperatorError
from common.ids import layer_hash

Provider = str | tuple[str, dict[str, Any]]
"""ONNX Runtime's name of an execution provider, with options or without."""
CPU: Final = "CPUExecutionProvider"
Opened = tuple[onnxruntime.InferenceSession, dict[str, str], str]
"""Session, the file's metadata, its hash."""
Opener = Callable[[Path, str], Opened]
"""Opens a layer file of a kind: `open_session`, or on a gateway what its hardware runs best (`edge.providers`)."""


def create_session(data: bytes, providers: Sequence[Provider] = (CPU,)) -> onnxruntime.InferenceSession:
    """A session with our settings.

    One intra-op thread and no spinning: the default threads spin while idle and cost four times the CPU at 5 fps.

    Raises:
        EnvironmentFault: it cannot be made on these providers; on the CPU it is the model that is wrong.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        # without ONNX Runtime's own way back, which prints and hides what went wrong
        return onnxruntime.InferenceSession(data, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no public base but Exception
        raise EnvironmentFault(str(error)) from error


def open_session(path: Path, kind: str, providers: Sequence[Provider] = (CPU,)) -> Opened:
    """Load a layer file: session, its metadata, its hash.

    Args:
        kind: `backbone`, `head` or `detector`.
        providers: on which to run, the first first.

    Raises:
        OperatorError: no such file, no ONNX model, or a model of another kind.
        EnvironmentFault: it does not load on these providers, other than the CPU.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"cannot read model {path}: {error.strerror}", "Install the release again.") from error
    try:
        session = create_session(data, providers)
    except EnvironmentFault as error:
        if tuple(providers) != (CPU,):
            raise
        raise OperatorError(f"{path} is not an ONNX model that ONNX Runtime can run ({error})", _HINT) from error
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    found = metadata.get(keys.KIND, "nothing")
    if found != kind:
        raise OperatorError(f"{path} should be a {kind}, its metadata `{keys.KIND}` says {found!r}", _HINT)
    return session, metadata, layer_hash(data)


_HINT = "Use a layer exported by the centre (docs/cloud.md, 'Bring your own backbone')."


class Backbone:
    """Frozen feature extractor: picture in, embedding out."""

    def __init__(self, session: onnxruntime.InferenceSession, metadata: dict[str, str], name: str, path: Path) -> None:
        self._session = session
        self.hash = name
        self.precision = metadata.get(keys.PRECISION, keys.FLOAT)
        self.stands_for = metadata.get(keys.STANDS_FOR, name)
        """Hash of the backbone whose heads it serves: its own, or for a variant that of the float one."""
        try:
            self.input_px = int(metadata[keys.INPUT_PX])
            self._mean, self._scale = float(metadata[keys.PIXEL_MEAN]), float(metadata[keys.PIXEL_SCALE])
            (output,) = [item for item in session.get_outputs() if item.name == keys.EMBEDDING]
            self.dimension = int(output.shape[1])
            self.has_patches = any(item.name == keys.PATCHES for item in session.get_outputs())
        except (KeyError, ValueError, TypeError) as error:
            raise OperatorError(f"{path} lacks what a backbone declares ({error})", _HINT) from error

    @classmethod
    def open(cls, path: Path, opener: Opener = open_session) -> "Backbone":
        """Raises:
        OperatorError: not a backbone; names the file.
        """
        session, metadata, name = opener(path, "backbone")
        return cls(session, metadata, name, path)

    def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embedding float32 (d,), raw, of a picture uint8 (H, W, 3) BGR."""
        embedding: NDArray[np.float32] = self._session.run([keys.EMBEDDING], {keys.IMAGE: self.tensor(image)})[0][0]
        return embedding

    def embed_patches(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The embedding, and the feature map float32 (d, h, w) whose mean it is; None where the backbone gives none."""
        if not self.has_patches:
            return self.embed(image), None
        embedding, patches = self._session.run([keys.EMBEDDING, keys.PATCHES], {keys.IMAGE: self.tensor(image)})
        return embedding[0], patches[0]

    def fit(self, image: NDArray[np.uint8], side_px: int = 0) -> NDArray[np.uint8]:
        """The picture (H, W, 3) resized to a square, by default the backbone's own."""
        side_px = side_px or self.input_px
        if image.shape[:2] == (side_px, side_px):
            return image
        shrinks = min(image.shape[:2]) >= side_px
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(image, (side_px, side_px), interpolation=interpolation), dtype=np.uint8)

    def tensor(self, image: NDArray[np.uint8], side_px: int = 0) -> NDArray[np.float32]:
        """The input float32 (1, 3, px, px) of a picture uint8 (H, W, 3) BGR."""
        resized = self.fit(image, side_px)
        blob = cv2.dnn.blobFromImage(
            resized, 1 / self._scale, mean=(self._mean,) * 3, swapRB=True
        )  # (pixel - mean) / scale
        return np.asarray(blob, dtype=np.float32)


RUNS: Final = 12
"""The fastest counts: what else the machine does can only slow a pass down."""


def time_pass_s(backbone: Backbone) -> float:
    """Seconds of the fastest of some passes on a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (backbone.input_px, backbone.input_px, 3), dtype=np.uint8)
    taken_s = []
    for _ in range(RUNS):
        began_s = time.perf_counter()
        backbone.embed(noise)
        taken_s.append(time.perf_counter() - began_s)
    return min(taken_s)

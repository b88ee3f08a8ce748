"""Carries selection over a restart: one file per camera in `data_dir/selection`.

Decides when to write and what to make of a damaged file; what is remembered is the selector's. A file per camera and
not per gateway, because cameras move between worker processes, and because damage then costs one camera its memory.
A file is a line that says what it is, a digest, and msgpack. Whatever is wrong with it, it is put aside as
`NAME.damaged` and the camera begins anew: selection without memory sends a few pictures twice, an agent that does not
start sends none.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.errors import EnvironmentFault, WireError
from common.files import disk_fault, write_atomically
from edge.selection.normal import CameraNormal
from edge.selection.selector import SENT, CameraMemory, Selector

log = logging.getLogger(__name__)

FOLDER: Final = "selection"
MAGIC: Final = b"headframe selection 1\n"
"""The number is the version; a file of another one is put aside like a damaged one."""
DIGEST_BYTES: Final = 16
FILE_BYTES_MAX: Final = 64_000_000
"""Beyond any that this writes: 200 embeddings of 16 Ki values are 7 MB."""
DIMENSION_MAX: Final = 1 << 16
BUSY_S: Final = 600.0
"""A camera that has sent something is written at most so often: half a megabyte each, and flash wears."""
QUIET_S: Final = 3600.0
"""A camera that has sent nothing is written so often: its budget and its normal go on."""


class _File(msgspec.Struct, frozen=True):
    """What a file holds. Arrays are little-endian: sent float16 (n, d), normal float32 (d,)."""

    camera_id: str
    space: str
    budget: float
    dimension: int
    sent: bytes
    normal: bytes
    looks: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_File).decode


class Keeper:
    """Restores a selector's cameras when it is made, and writes them down from time to time.

    Args:
        folder: the gateway's `data_dir`.
        selector: a new one, whose cameras have offered nothing yet.
        camera_ids: the cameras that are this process's to keep.
        now_s: monotonic.
    """

    def __init__(self, folder: Path, selector: Selector, camera_ids: Sequence[str], now_s: float) -> None:
        self._folder, self._selector = folder / FOLDER, selector
        self._kept: dict[str, tuple[float, int]] = {}
        """camera -> when it was written, and how many it had ever sent then"""
        self.damaged: list[Path] = []
        """Files that were put aside at the start."""
        for name in camera_ids:
            self.attach(name, now_s)

    def attach(self, camera_id: str, now_s: float) -> None:
        """A camera that the selector has just got: restore it."""
        self._kept[camera_id] = (now_s, 0)
        memory = self._read(camera_id)
        if memory is not None:
            self._selector.restore(camera_id, memory)

    def detach(self, camera_id: str, now_s: float) -> None:
        """A camera that the selector will lose now: write it down."""
        self._write(camera_id, now_s)
        del self._kept[camera_id]

    def keep(self, now_s: float) -> None:
        """Write down the camera that has waited longest, if its time has come: one per call, as a write blocks."""
        due = [
            (at_s, name)
            for name, (at_s, sent) in self._kept.items()
            if now_s - at_s >= (BUSY_S if self._selector.ever_sent(name) != sent else QUIET_S)
        ]
        if due:
            self._write(min(due)[1], now_s)

    def keep_all(self, now_s: float) -> None:
        """Write down every camera: when the agent stops."""
        for name in self._kept:
            self._write(name, now_s)

    def _path(self, camera_id: str) -> Path:
        return self._folder / f"{camera_id}.bin"

    def _write(self, camera_id: str, now_s: float) -> None:
        self._kept[camera_id] = (now_s, self._selector.ever_sent(camera_id))  # a full disk is tried again when due
        memory = self._selector.remember(camera_id)
        if memory is None:
            return
        try:
            write_atomically(self._path(camera_id), encode(camera_id, memory))
        except EnvironmentFault as error:
            log.error("what camera %s has sent cannot be kept: %s", camera_id, error)

    def _read(self, camera_id: str) -> CameraMemory | None:
        path = self._path(camera_id)
        try:
            with path.open("rb") as file:
                return decode(camera_id, file.read(FILE_BYTES_MAX + 1))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("%s", disk_fault(path, error))
            return None
        except WireError as error:
            self._put_aside(path, error)
            return None

    def _put_aside(self, path: Path, reason: WireError) -> None:
        aside = path.with_suffix(".damaged")
        log.error("camera %s begins anew with its selection; %s is kept as %s: %s", path.stem, path, aside.name, reason)
        self.damaged.append(aside)
        try:
            path.replace(aside)
        except OSError as error:
            log.error("%s", disk_fault(path, error))


def encode(camera_id: str, memory: CameraMemory) -> bytes:
    """A camera's memory as a file."""
    normal = memory.normal.mean if memory.normal.mean is not None else np.zeros(0)
    sent = np.stack(memory.sent) if memory.sent else np.zeros((0, len(normal)))
    body = _encode(
        _File(
            camera_id,
            memory.space,
            memory.budget,
            len(normal),
            sent.astype("<f2").tobytes(),
            normal.astype("<f4").tobytes(),
            memory.normal.looks,
        )
    )
    return MAGIC + hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body


def decode(camera_id: str, data: bytes) -> CameraMemory:
    """A file as a camera's memory.

    Raises:
        WireError: not such a file, too large, another camera's, of another version, damaged, or with values that are
            not finite.
    """
    if len(data) > FILE_BYTES_MAX:
        raise WireError(f"it is larger than {FILE_BYTES_MAX} bytes")
    if not data.startswith(MAGIC):
        raise WireError(f"it does not begin with {MAGIC.decode().strip()!r}")
    digest, body = data[len(MAGIC) : len(MAGIC) + DIGEST_BYTES], data[len(MAGIC) + DIGEST_BYTES :]
    if hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != digest:
        raise WireError("its bytes do not match their digest")
    try:
        file = _decode(body)
    except msgspec.DecodeError as error:
        raise WireError(f"it cannot be decoded ({error})") from error
    if file.camera_id != camera_id:
        raise WireError(f"it is of camera {file.camera_id}")
    d = file.dimension
    fits = 0 < d <= DIMENSION_MAX and len(file.normal) == 4 * d and len(file.sent) % (2 * d) == 0
    if not fits or len(file.sent) > SENT * 2 * d or file.looks < 1 or not 0 <= file.budget < 1e9:
        raise WireError("its parts do not fit each other")
    sent = _floats(file.sent, "<f2").reshape(-1, d)
    normal = _floats(file.normal, "<f4")
    return CameraMemory(file.space, file.budget, tuple(sent), CameraNormal(normal, file.looks))


def _floats(data: bytes, kind: str) -> NDArray[np.float64]:
    values = np.frombuffer(data, kind).astype(np.float64)
    if not np.isfinite(values).all():
        raise WireError("it holds numbers that are not finite")
    return values

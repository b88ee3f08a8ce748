"""A release as one file, for a mine without a network: what would travel over MQTT, in a zip.

    release                  the message `Desired`, without an assignment
    assignments/GATEWAY      for each gateway that may install it; `archive` is for another centre
    layers/HASH              every layer

Decides the layout and its bounds. Nothing in it is believed because it is here: the message is checked by the roles
that signed it, and a layer by the hash that they signed.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from common import codec
from common.errors import OperatorError, WireError
from common.ids import layer_hash
from common.messages import Desired
from common.trust import ASSIGNMENT_BYTES_MAX, BUNDLE_BYTES_MAX, MANIFEST_BYTES_MAX

RELEASE: Final = "release"
ASSIGNMENTS: Final = "assignments/"
LAYERS: Final = "layers/"
CENTRE: Final = "archive"
"""In place of a gateway's id: what a centre is told that imports the file."""
FILES_MAX: Final = 100_000
RELEASE_BYTES_MAX: Final = 2 * MANIFEST_BYTES_MAX + BUNDLE_BYTES_MAX + 4096
_DAMAGE: Final = (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, KeyError, ValueError)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def write_archive(
    path: Path, desired: Desired, assignments: Mapping[str, bytes], layers: Iterable[tuple[str, Path]]
) -> None:
    """Write the file. The same release gives the same bytes; layers are stored as they are (weights do not shrink)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)

        put(RELEASE, codec.encode(msgspec.structs.replace(desired, assignment=b"")))
        for gateway_id, signed in sorted(assignments.items()):
            put(f"{ASSIGNMENTS}{gateway_id}", signed)
        for name, source in sorted(layers):
            put(f"{LAYERS}{name}", source.read_bytes())


class Archive:
    """Reads such a file.

    Raises:
        OperatorError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self._sizes = {info.filename: info.file_size for info in self._zip.infolist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise OperatorError(f"cannot read {path}: {error}", "Give the file of `headframe cloud export`.") from error
        if RELEASE not in self._sizes or len(self._sizes) > FILES_MAX:
            self.close()
            raise OperatorError(f"{path} holds no release", "Give the file of `headframe cloud export`.")

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def desired(self, gateway_id: str) -> Desired:
        """What the centre says to this gateway.

        Raises:
            OperatorError: the file is not for it.
            WireError: damaged.
        """
        if f"{ASSIGNMENTS}{gateway_id}" not in self._sizes:
            raise OperatorError(
                f"{self.path} is not for {gateway_id}", "Export it with `--gateway` and this gateway's id."
            )
        message = codec.decode(self._read(RELEASE, RELEASE_BYTES_MAX))
        if not isinstance(message, Desired):
            raise WireError(f"{self.path} holds a {type(message).__name__} in place of a release")
        signed = self._read(f"{ASSIGNMENTS}{gateway_id}", ASSIGNMENT_BYTES_MAX)
        return msgspec.structs.replace(message, assignment=signed)

    def has_layer(self, name: str) -> bool:
        """Whether a layer is in the file."""
        return f"{LAYERS}{name}" in self._sizes

    def layer(self, name: str, size_bytes: int) -> bytes:
        """The bytes of a layer.

        Raises:
            WireError: it is not here, of another size, or does not match its hash.
        """
        if self._sizes.get(f"{LAYERS}{name}") != size_bytes:
            raise WireError(f"layer {name[:12]} of {size_bytes} bytes is not in {self.path}")
        data = self._read(f"{LAYERS}{name}", size_bytes)
        if layer_hash(data) != name:
            raise WireError(f"layer {name[:12]} in {self.path} does not match its hash")
        return data

    def part(self, name: str, offset: int, length: int) -> tuple[bytes, int]:
        """Some bytes of a layer, and how many it has; whoever puts them together checks the hash.

        Raises:
            WireError: it is not here, or damaged.
        """
        total = self._sizes.get(f"{LAYERS}{name}", 0)
        if not 0 <= offset < total:
            raise WireError(f"layer {name[:12]} is not in {self.path}, or ends before {offset}")
        try:
            with self._zip.open(f"{LAYERS}{name}") as file:
                file.seek(offset)
                return file.read(length), total
        except _DAMAGE as error:
            raise WireError(f"layer {name[:12]} in {self.path} is damaged: {error}") from error

    def _read(self, name: str, bytes_max: int) -> bytes:
        """One file, whole and within its bound, whatever the directory of the zip says."""
        try:
            with self._zip.open(name) as file:
                data = file.read(bytes_max + 1)
        except _DAMAGE as error:
            raise WireError(f"{name} in {self.path} is damaged: {error}") from error
        if len(data) > bytes_max:
            raise WireError(f"{name} in {self.path} is over its bound of {bytes_max} bytes")
        return data

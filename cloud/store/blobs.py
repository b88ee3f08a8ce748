"""Pictures, one after the other in segment files. A picture is durable before any row names it.

A row keeps where its picture lies (`segment:offset:length`), so what a crash leaves behind the last row is named by
nothing and does no harm; each writer begins a segment of its own and never touches another's. Of before, when every
picture was a file named by its hash, the files are still read (docs/decisions/0046).

Each record is a head of 24 bytes (magic, length, sample id) and the picture; a batch is padded to whole blocks. The id
is the hash of the picture and its identity, so whoever has the row can tell whether the disk has damaged it.

Written past the page cache (O_DIRECT) where the file system can: 2 us of CPU for 20 KB instead of 25 (measured), and
pictures that nobody looks at again do not push the database out of memory.
"""

import errno
import logging
import mmap
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
SLAB_BYTES = 4 << 20
"""Bytes handed to the disk at once; the only copy of a batch that is made."""
BLOCK_BYTES = 4096
"""O_DIRECT wants offsets, lengths and memory aligned to it."""
_DIRECT = getattr(os, "O_DIRECT", 0)
_MAGIC = b"HFp1"
_HEAD = struct.Struct("<4sI16s")


class Blobs:
    """Any thread may call it; several processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._name, self._size = "", 0
        self._direct = bool(_DIRECT)
        self._slab = mmap.mmap(-1, SLAB_BYTES)

    def append(self, pictures: Sequence[tuple[bytes, bytes]]) -> list[str]:
        """Keep several (sample id, picture) with one flush of the disk; returns where each lies. Durable on return.

        Raises:
            EnvironmentFault: the disk is full or fails; what was written of them is named by nobody.
        """
        places: list[str] = []
        with self._lock:
            descriptor = self._open()
            at = self._size
            for _, data in pictures:
                places.append(f"{self._name}:{at + _HEAD.size}:{len(data)}")
                at += _HEAD.size + len(data)
            try:
                self._size += self._write(descriptor, pictures)
                os.fdatasync(descriptor)
            except OSError as error:
                path = self._path(self._name)
                self._leave()  # after a failed flush nobody knows what is on disk: never append to it again
                raise disk_fault(path, error) from error
            if self._size >= SEGMENT_BYTES:
                self._leave()
        return places

    def _write(self, descriptor: int, pictures: Sequence[tuple[bytes, bytes]]) -> int:
        """All of them through the slab, padded to a whole block; returns how many bytes that is."""
        slab, filled, done = self._slab, 0, 0
        for name, data in pictures:
            for part in (_HEAD.pack(_MAGIC, len(data), name), data):
                start = 0
                while start < len(part):
                    length = min(len(part) - start, SLAB_BYTES - filled)
                    slab[filled : filled + length] = part[start : start + length]
                    start, filled = start + length, filled + length
                    if filled == SLAB_BYTES:
                        done, filled = done + self._pour(descriptor, self._size + done, filled), 0
        if filled:
            padded = -(-filled // BLOCK_BYTES) * BLOCK_BYTES
            slab[filled:padded] = bytes(padded - filled)
            done += self._pour(descriptor, self._size + done, padded)
        return done

    def _pour(self, descriptor: int, at: int, length: int) -> int:
        """The first bytes of the slab into the file, though one call takes but some."""
        with memoryview(self._slab) as view:
            done = 0
            while done < length:
                done += os.pwrite(descriptor, view[done:length], at + done)
        return length

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
                while at < end:
                    file.seek(at)
                    head = file.read(_HEAD.size).ljust(_HEAD.size, b"\0")
                    magic, size, name = _HEAD.unpack(head)
                    if magic != _MAGIC:  # the padding of a batch, or the torn tail of a crash
                        at += BLOCK_BYTES - at % BLOCK_BYTES
                        continue
                    at += _HEAD.size + size
                    if at <= end:
                        yield name, f"{path.stem}:{at - size}:{size}"

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
            self._descriptor = self._create(path)
            sync_folder(path.parent)
        except OSError as error:
            self._leave()
            raise disk_fault(path, error) from error
        self._name, self._size = name, 0
        return self._descriptor

    def _create(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        if self._direct:
            try:
                return os.open(path, flags | _DIRECT, PRIVATE)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = False  # a file system in memory, or of the network
                path.unlink(missing_ok=True)
        return os.open(path, flags, PRIVATE)

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

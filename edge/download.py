"""A release's layers from the centre: resumable, as deltas of layers that are here where the centre has them.

Decides what to ask for next and whether what came is the layer that was signed. A layer comes as a parcel that is
published once for all who need it (`edge.intake`), and where that does not work out in parts for this gateway alone;
both fill the same file, so either goes on where the other stopped. Knows no trust and no model: which layers are wanted
is told, and a layer is there when its bytes have its hash.
"""

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from common.clock import Clock
from common.delta import apply_delta
from common.errors import WireError
from common.files import disk_fault, sync_folder, write_atomically
from common.ids import layer_hash
from common.manifest import Layer
from common.messages import Fetch, LayerPart, Shelved
from common.parcels import PIECE_BYTES
from edge.intake import Intake

log = logging.getLogger(__name__)

PART_BYTES: Final = 256 * 1024
BASES_MAX: Final = 16  # layers named as bases for a delta: those of the running and of the previous release
STALL_S: Final = 5.0

Request = Callable[[Fetch], bool]
"""Publishes a Fetch; False when the link is down (asked again later)."""


class LayerFolder:
    """The layers on this gateway: one file each, named by hash; parts of layers under way beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a layer of this hash is, or will be."""
        return self.folder / name

    def holds(self, layer: Layer) -> bool:
        """Whether it is here, by its size; its hash is checked when it is loaded."""
        path = self.path(layer.hash)
        return path.is_file() and path.stat().st_size == layer.size_bytes

    def held(self) -> tuple[str, ...]:
        """Hashes of the layers that are here whole."""
        return tuple(sorted(path.name for path in self.folder.iterdir() if not path.suffix))

    def part_path(self, layer: Layer, base: str) -> Path:
        """What has come of a layer, as its file or as a delta of `base`."""
        return self.path(f"{layer.hash}.{base}.part" if base else f"{layer.hash}.part")

    def parts(self, layer: Layer) -> list[tuple[str, int]]:
        """Base (empty: the whole file) and bytes of what earlier attempts left of a layer."""
        found = []
        for part in sorted(self.folder.glob(f"{layer.hash}*.part")):
            base = part.name.removeprefix(layer.hash).removesuffix(".part").strip(".")
            found.append((base, part.stat().st_size))
        return found

    def sweep(self, wanted: Iterable[str]) -> None:
        """Remove everything but the layers of these hashes, and what has come of them."""
        keep = set(wanted)
        for path in self.folder.iterdir():
            if path.name.partition(".")[0] not in keep:
                path.unlink(missing_ok=True)


class Download:
    """The layers of one release that are not here yet. `step` asks, `take` receives, `done` when all are here.

    Args:
        layers: what the release needs.
        folder: where they go.
        request: asks the centre.
        bytes_per_s: what a parcel may come at; 0: no bound.
        rng: see `Intake`.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        folder: LayerFolder,
        clock: Clock,
        request: Request,
        bytes_per_s: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self._folder, self._clock, self._request = folder, clock, request
        self._bytes_per_s, self._rng = bytes_per_s, rng or random.Random()
        self._missing = [layer for layer in layers if not folder.holds(layer)]
        self._base = ""
        """What the layer under way is a delta of; empty while its whole file is fetched."""
        self._whole: set[str] = set()
        """Layers whose delta did not work out here."""
        self._offset = 0
        self._resumed = False
        """It began behind bytes that an earlier attempt left: they may be torn."""
        self._asked_at_s = float("-inf")
        self._intake: Intake | None = None
        """The parcel that the layer under way comes as; None while it comes in parts."""
        self._alone: set[str] = set()
        """Layers whose parcel did not work out here."""
        self._resume()

    @property
    def done(self) -> bool:
        """All layers are here."""
        return not self._missing

    @property
    def bytes_needed(self) -> int:
        """What the disk must hold more than now, at the most: all that is missing, and once more the largest of it,
        since a delta and what it makes are there at the same time. At most twice the model."""
        sizes = [layer.size_bytes for layer in self._missing]
        here = sum(size for layer in self._missing for _, size in self._folder.parts(layer))
        return max(0, sum(sizes) + max(sizes, default=0) - here)

    def step(self) -> None:
        """Ask for the next part when nothing is under way; say so when pieces of a parcel do not come."""
        now_s = self._clock.monotonic_s()
        if self._intake and self._intake.is_hopeless(now_s):
            self._go_alone("nothing comes")
        silent = self._intake is not None and self._intake.is_silent(now_s)
        if self.done or (not silent and (self._intake or now_s - self._asked_at_s < STALL_S)):
            return
        layer = self._missing[0].hash
        fetch = Fetch(
            layer=layer,
            offset=self._offset,
            length=PART_BYTES,
            bases=self._bases(),
            shared=layer not in self._alone,
            silent=silent,
        )
        if self._request(fetch):
            self._asked_at_s = now_s

    def pieces(self) -> frozenset[str]:
        """Pieces that the layer under way needs now, of those that are published for all."""
        return self._intake.wanted(self._clock.monotonic_s()) if self._intake else frozenset()

    def take_shelved(self, shelved: Shelved) -> int:
        """The layer that is being fetched is published for all; anything else is ignored (late). Returns 0: its bytes
        are still to come.

        Raises:
            EnvironmentFault: what is here of it cannot be read.
        """
        if self.done or shelved.layer != self._missing[0].hash or shelved.layer in self._alone:
            return 0
        now_s = self._clock.monotonic_s()
        if self._intake and self._intake.unpacking.parcel == shelved.parcel and self._base == shelved.base:
            self._intake.on_answer(now_s, shelved.wait_s)
            return 0
        bounds = [bound for bound in (self._bytes_per_s, shelved.bytes_per_s) if bound > 0]
        try:
            self._check(shelved.base, shelved.parcel.total_bytes)
            self._intake = Intake(shelved.parcel, now_s, shelved.wait_s, min(bounds, default=0.0), self._rng)
        except WireError as error:
            self._go_alone(str(error))
            return 0
        self._base = shelved.base
        if self._intake.unpacking.is_known:
            self._go_on_behind()
        return 0

    def take_piece(self, name: str, data: bytes) -> int:
        """Take a piece that was published for all; returns its bytes, 0 when it was of no use.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        intake = self._intake
        if intake is None:
            return 0
        was_known = intake.unpacking.is_known
        try:
            found = intake.take(name, data, self._clock.monotonic_s())
        except WireError as error:
            self._go_alone(str(error))
            return 0
        if intake.unpacking.is_known and not was_known:
            self._go_on_behind()
        elif found:
            self._write(found)
            if intake.unpacking.done:
                self._end_parcel()
        return len(found)

    def _go_on_behind(self) -> None:
        """Keep what an earlier attempt left, piece by piece, as far as it is right."""
        intake, layer = self._intake, self._missing[0]
        if intake is None:
            return
        path = self._folder.part_path(layer, self._base)
        try:
            self._offset = intake.unpacking.skip(_pieces_in(path))
            if path.exists():
                os.truncate(path, self._offset)
        except OSError as error:
            raise disk_fault(path, error) from error
        if intake.unpacking.done:
            self._end_parcel()

    def _end_parcel(self) -> None:
        """All pieces are right; if what they make is not, it is fetched anew, in parts."""
        layer, base, self._intake = self._missing[0], self._base, None
        self._resumed = True  # whoever said which parcel it is may have been wrong
        self._end_layer(self._folder.part_path(layer, base), layer, base)
        if self._missing and self._missing[0] == layer:
            self._alone.add(layer.hash)

    def _go_alone(self, why: str) -> None:
        layer, self._intake, self._asked_at_s = self._missing[0], None, float("-inf")
        log.warning("layer %s is fetched for this gateway alone: %s", layer.hash[:12], why)
        self._alone.add(layer.hash)
        self._resumed = self._resumed or self._offset > 0  # the pieces so far are of whatever parcel it was

    def take(self, part: LayerPart) -> int:
        """Take a part of the layer that is being fetched; anything else is ignored (late or duplicate).

        Returns:
            Its bytes, 0 when it was of no use.

        Raises:
            WireError: it cannot be of the layer that was signed.
            EnvironmentFault: it cannot be written.
        """
        if self.done or part.layer != self._missing[0].hash or part.offset != self._offset:
            return 0
        if part.offset and part.base != self._base:
            self._begin_again()  # the centre no longer has the delta that was under way
            return 0
        self._intake = None  # this is for this gateway alone; what follows may be a parcel again
        self._base = part.base
        self._append(part)
        return len(part.data)

    def _bases(self) -> tuple[str, ...]:
        """Layers to start from: the one that the delta under way needs, at its beginning any that is here."""
        if self._offset:
            return (self._base,) if self._base else ()
        if self._missing[0].hash in self._whole:
            return ()
        return self._folder.held()[:BASES_MAX]

    def _resume(self) -> None:
        """Go on behind the bytes that an earlier attempt left, of a delta or of the whole file."""
        if self.done:
            return
        layer = self._missing[0]
        self._base, self._offset, self._asked_at_s = "", 0, float("-inf")
        self._intake, self._resumed = None, False
        for base, size in self._folder.parts(layer):
            usable = not base or (self._folder.path(base).is_file() and layer.hash not in self._whole)
            if usable and self._offset < size <= layer.size_bytes:
                self._base, self._offset, self._resumed = base, size, True

    def _append(self, part: LayerPart) -> None:
        layer = self._missing[0]
        if part.total_bytes == 0:
            raise WireError(f"the centre does not hold layer {layer.hash[:12]}")
        self._check(part.base, part.total_bytes)
        ends = part.offset + len(part.data)
        if ends > part.total_bytes or (not part.data and ends < part.total_bytes):
            raise WireError(f"layer {layer.hash[:12]} came with another size than the manifest declares")
        self._write(part.data)
        self._asked_at_s = float("-inf")
        if self._offset >= part.total_bytes:
            self._end_layer(self._folder.part_path(layer, part.base), layer, part.base)

    def _check(self, base: str, total_bytes: int) -> None:
        """Whether the layer that is being fetched can come as so many bytes, and as a delta of `base`."""
        layer = self._missing[0]
        if base and base not in self._folder.held():
            raise WireError(f"layer {layer.hash[:12]} came as a delta of {base[:12]!r}, which is not here")
        if not (0 < total_bytes <= layer.size_bytes if base else total_bytes == layer.size_bytes):
            raise WireError(f"layer {layer.hash[:12]} came with another size than the manifest declares")

    def _write(self, data: bytes) -> None:
        path = self._folder.part_path(self._missing[0], self._base)  # may be whole: an earlier attempt went no further
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise disk_fault(path, error) from error
        self._offset += len(data)

    def _end_layer(self, path: Path, layer: Layer, base: str) -> None:
        """All of a layer has come into `path`: it is the layer, or it is fetched again, or the centre is wrong."""
        try:
            self._complete(path, layer, base)
        except WireError as error:
            if not base and not self._resumed:
                path.unlink(missing_ok=True)
                raise
            kind = "delta" if base else "part that an earlier attempt left"
            log.warning("the %s of layer %s does not work here (%s)", kind, layer.hash[:12], error)
            self._begin_again()
            return
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # what a disk has failed to keep once is not trusted to be kept
            raise
        self._missing.pop(0)
        self._resume()

    def _begin_again(self) -> None:
        """Fetch the whole file of the layer under way, from its beginning."""
        layer = self._missing[0]
        self._folder.part_path(layer, self._base).unlink(missing_ok=True)
        self._whole.add(layer.hash)
        self._resume()

    def _complete(self, path: Path, layer: Layer, base: str) -> None:
        """Make the layer of what was fetched into `path`, whole and durable, if it has the hash that was signed."""
        data = path.read_bytes()
        if base:
            data = apply_delta(self._folder.path(base).read_bytes(), data, layer.size_bytes)
        if layer_hash(data) != layer.hash:
            raise WireError(f"layer {layer.hash[:12]} does not match its hash")
        if base:
            write_atomically(self._folder.path(layer.hash), data)
            path.unlink()
            return
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.replace(self._folder.path(layer.hash))
        sync_folder(self._folder.folder)


def _pieces_in(path: Path) -> Iterator[bytes]:
    """What is in a file, cut as a parcel is."""
    if path.is_file():
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

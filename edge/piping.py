"""What the agent and its worker processes say to each other over their pipes: orders one way, tidings the other.

Only bytes cross a pipe, each kind decoded by its own type: nothing is unpickled. Not the wire: both ends are of one
version, and nobody else listens.
"""

import msgspec
from pydantic import TypeAdapter

from common.manifest import Manifest
from common.messages import CameraState
from edge.perception import Model
from edge.roster import Roster
from edge.tally import Observation


class Release(msgspec.Struct, frozen=True):
    """What a worker needs to load a release from the layers on disk."""

    release_id: str
    manifest: Manifest
    backbone: str = ""
    """The layer that the parent has chosen among the variants: all workers run the same."""

    @classmethod
    def of(cls, model: Model | None) -> "Release | None":
        """The release that a model of the parent is."""
        return cls(model.release_id, model.manifest, model.backbone.hash) if model else None


class Load(msgspec.Struct, tag="load", frozen=True):
    """To a worker: `Lookout.hand_over` with these."""

    number: int
    """Of the order: what a worker reports is of the last one that it has carried out."""
    runs: Release | None
    beside: Release | None = None
    on_trial: bool = False
    rescue: bool = False


class Watch(msgspec.Struct, tag="watch", frozen=True):
    """To a worker: watch these cameras from now on."""

    roster: bytes
    """JSON of a `Roster`: its cameras are pydantic's, not msgspec's."""


class Durable(msgspec.Struct, tag="durable", frozen=True):
    """To a worker: the sample it sent is in the spool."""


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """To a worker: end, and judge what is still held."""


class Show(msgspec.Struct, tag="show", frozen=True):
    """To a worker: somebody wants to see what was looked at last of a camera."""

    camera_id: str


class Shown(msgspec.Struct, frozen=True):
    """From a worker, in answer: a JPEG, empty when there is none."""

    camera_id: str
    jpeg: bytes


class Report(msgspec.Struct, tag="report", frozen=True):
    """From a worker, twice a second."""

    release_id: str
    looks_by_release: dict[str, int]
    cameras: tuple[CameraState, ...]
    ended: bool
    pictures_lost: int
    order: int = 0
    observation: Observation = Observation()


Order = Load | Watch | Durable | Stop | Show
as_json = TypeAdapter(Roster)
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_shown = msgspec.msgpack.Decoder(Shown).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
encode = msgspec.msgpack.encode
SAMPLE, REPORT, EVENT, PICTURE = b"s", b"r", b"e", b"p"
"""First byte of what a worker sends: a sample as on the wire, a report, an event as on the wire, or a `Shown`."""

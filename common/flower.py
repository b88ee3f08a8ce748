"""The one touch point with Flower's internals (flwr 1.41; tests/common/test_flower.py names the version).

Public API of `flwr` covers messages, records, apps and strategies; not public, and isolated here: a message's
protobuf bytes outside a SuperLink, and the process-wide task identity without which no `Message` can be made.
Imported by `edge.learner` and `cloud.federation` only; the rest of `common` stays light.
"""

import hashlib
import logging
from collections.abc import Iterator

from common.quiet import silence_flower

silence_flower()

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.common.constant import ErrorCode  # noqa: E402
from flwr.common.serde import message_from_proto, message_to_proto  # noqa: E402
from flwr.proto.message_pb2 import Message as ProtoMessage  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from google.protobuf.message import DecodeError  # noqa: E402

from common.errors import WireError  # noqa: E402
from common.protobytes import cut  # noqa: E402

__all__ = [
    "APP_FAILED",
    "COMPRESSED",
    "SERVER_NODE_ID",
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "Context",
    "Error",
    "Message",
    "MetricRecord",
    "RecordDict",
    "is_released",
    "message_from_bytes",
    "message_to_bytes",
    "name_message",
    "node_id_of",
    "release",
    "take_identity",
]

SERVER_NODE_ID = 1
APP_FAILED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Code of the error with which a node answers whose app failed."""
COMPRESSED = "headframe."
"""Begin of the `stype` of an array that `edge.compressing` made; the scheme follows (`common.compression`)."""
_LOG = logging.getLogger("flwr")
_LOG.setLevel(logging.WARNING)  # its progress lines are for a terminal of its own
_LOG.addFilter(lambda record: "fraction_evaluate is set to 0" not in record.getMessage())  # the centre's gate evaluates


def node_id_of(gateway_id: str) -> int:
    """Flower's node id of a gateway: 63 bits of a hash, never 0 or the server's."""
    number = int.from_bytes(hashlib.blake2b(gateway_id.encode(), digest_size=8).digest(), "big") >> 1
    return number if number > SERVER_NODE_ID else number + 2


def take_identity(node_id: int, run_id: int = 1) -> None:
    """Tell Flower who this process is; needed once before a `Message` is made."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


def name_message(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = message_id


def message_to_bytes(message: Message) -> bytes:
    """Protobuf bytes of a Flower message, as SuperLink would carry them."""
    for array in _arrays(message):
        if not isinstance(array.data, bytes):  # one that came by `message_from_bytes` and goes on
            array.data = bytes(array.data)
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def message_from_bytes(data: bytes) -> Message:
    """The message in `data`. Its arrays are views of `data`: nothing large is copied.

    Raises:
        WireError: the bytes are no Flower message.
    """
    skeleton, pieces = cut(data, _PATH_TO_ARRAY_DATA)
    try:
        message = message_from_proto(ProtoMessage.FromString(skeleton))
        for array, piece in zip(_arrays(message), pieces, strict=True):
            array.data = piece
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"not a Flower message: {error}") from error
    return message


def release(message: Message) -> None:
    """Let go of the bytes of a message's arrays now.

    Flower's records lie in reference cycles: without this a folded reply stays until the garbage collector comes by,
    some twenty replies later.
    """
    for array in _arrays(message):
        array.data = b""
    message.__dict__[_RELEASED] = True


def is_released(message: Message) -> bool:
    """Whether nobody will look at this message again."""
    return _RELEASED in message.__dict__


_RELEASED = "headframe.released"


def _arrays(message: Message) -> Iterator[Array]:
    """All arrays of a message, in the order of the wire."""
    if message.has_content():
        for record in message.content.values():
            if isinstance(record, ArrayRecord):
                yield from record.values()


def _path_to_array_data() -> tuple[int, ...]:
    """Field numbers from a message to the bytes of an array, read from Flower's own descriptors."""
    numbers, descriptor = [], ProtoMessage.DESCRIPTOR
    for name in ("content", "items", "array_record", "items", "value", "data"):
        field = descriptor.fields_by_name[name]
        numbers.append(field.number)
        descriptor = field.message_type
    return tuple(numbers)


_PATH_TO_ARRAY_DATA = _path_to_array_data()

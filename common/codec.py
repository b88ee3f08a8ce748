"""Bytes of a message: MessagePack, one map, with the schema version `v` beside the tag.

Wire form: `{"v": 1, "m": {"type": "sample", ...}}`. A message of another version is refused by that reason,
whether or not its body could be read, and never misread.
"""

import msgspec

from common.errors import BoundError, VersionError, WireError
from common.messages import SCHEMA_VERSION, Message

PAYLOAD_BYTES_MAX = 64 * 1024 * 1024


class _Version(msgspec.Struct):
    v: int


class _Envelope(msgspec.Struct):
    v: int
    m: Message


_encoder = msgspec.msgpack.Encoder()
_version_decoder = msgspec.msgpack.Decoder(_Version)
_decoder = msgspec.msgpack.Decoder(_Envelope)


def encode(message: Message) -> bytes:
    """Encode a message with the schema version of this build."""
    return _encoder.encode(_Envelope(v=SCHEMA_VERSION, m=message))


def decode(payload: bytes) -> Message:
    """Decode a payload.

    Raises:
        VersionError: the peer speaks another schema version.
        BoundError: too large.
        WireError: no MessagePack, an unknown type, or a field of the wrong type.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise BoundError(f"payload of {len(payload)} bytes is over the bound of {PAYLOAD_BYTES_MAX}")
    try:
        envelope = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_version(payload)
        raise WireError(f"not a message: {error}") from error
    if envelope.v != SCHEMA_VERSION:
        _check_version(payload)
    return envelope.m


def _check_version(payload: bytes) -> None:
    """Of a message that cannot be read: because it is of another version?"""
    try:
        version = _version_decoder.decode(payload).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if version != SCHEMA_VERSION:
        raise VersionError(
            f"message of schema version {version}, this build speaks {SCHEMA_VERSION}",
            "Update the older side: the centre first, then the gateways.",
        )

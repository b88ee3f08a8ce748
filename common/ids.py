"""Identities: gateway and site names, the content hash that is a sample's id, the hash that names a layer."""

import hashlib
import re
import struct

from common.errors import OperatorError

SAMPLE_ID_BYTES = 16
_LENGTH = struct.Struct(">Q")
_LAYER = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_name(kind: str, name: str) -> str:
    """Return `name` if it can be a site, gateway, camera or scenario id.

    The alphabet is what a certificate's common name, an MQTT topic level and a NATS subject all take.

    Raises:
        OperatorError: the name has other characters or is longer than 63.
    """
    if not _NAME.fullmatch(name):
        raise OperatorError(
            f"{kind} id {name!r} is not valid",
            "Use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit.",
        )
    return name


def sample_id(jpeg: bytes, gateway_id: str, camera_id: str, captured_at_ns: int) -> bytes:
    """Content hash of a sample: BLAKE2b-128 over its identity fields and the encoded image, each after its length.

    The same frame sampled again (after a crash, or in a looped file) has the same id, so it is stored once.
    """
    parts = (gateway_id.encode(), camera_id.encode(), captured_at_ns.to_bytes(8, "big", signed=True))
    head = b"".join([piece for part in parts for piece in (_LENGTH.pack(len(part)), part)]) + _LENGTH.pack(len(jpeg))
    digest = hashlib.blake2b(head, digest_size=SAMPLE_ID_BYTES, person=b"headframe-sample")
    digest.update(jpeg)
    return digest.digest()


def event_id(gateway_id: str, camera_id: str, scenario: str, began_at_ns: int) -> str:
    """Name of an event, 16 hex digits: what is said about it later says the same name."""
    parts = "\0".join((gateway_id, camera_id, scenario, str(began_at_ns)))
    return hashlib.blake2b(parts.encode(), digest_size=8, person=b"headframe-event").hexdigest()


def is_layer_hash(name: str) -> bool:
    """Whether this can be the name of a layer: what comes from a peer becomes a file name only then."""
    return _LAYER.fullmatch(name) is not None


def layer_hash(data: bytes) -> str:
    """Name of a layer file: 64 hex digits, BLAKE2b-256 of its bytes."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()

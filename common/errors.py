"""The whole error tree: whose fault it was decides the branch.

HeadframeError
├── OperatorError        the person or their files: wrong key, missing video, model that is no ONNX
│   └── ConfigError      a configuration file
├── PeerError            what came over the wire is wrong; nothing of it was used
│   ├── WireError        not decodable, over a bound, or a hash does not fit
│   │   └── BoundError   larger than it may be, or would be when opened
│   ├── ForgeryError     says that it is of somebody else
│   ├── RefusedError     asks for what it may not have
│   ├── VersionError     a schema version this side does not speak
│   └── TrustError       a signature, expiry or sequence does not hold
└── EnvironmentFault     disk full, broker out of reach: the same call may succeed later

Every error carries a sentence that says what was wrong and a `hint` that says what to do.
"""


class HeadframeError(Exception):
    """Base of all errors raised on purpose; `str()` is the sentence followed by the hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class OperatorError(HeadframeError):
    """A person can mend it: names the file or key, and says how."""


class ConfigError(OperatorError):
    """A configuration file has a wrong key or value."""


class PeerError(HeadframeError):
    """The other side sent something wrong; nothing of it was used."""


class WireError(PeerError):
    """Bytes that cannot be decoded, exceed a bound, or do not match their hash."""


class BoundError(WireError):
    """Larger than it may be, or declares that it will be; it was not opened."""


class ForgeryError(PeerError):
    """A peer says in a message that it is somebody else."""


class RefusedError(PeerError):
    """A peer asks for what the protocol, or the policy of this side, does not give it."""


class VersionError(PeerError):
    """A message or file of a schema version that this side does not speak."""


class TrustError(PeerError):
    """A signature, an expiry date or a sequence number does not hold."""


class EnvironmentFault(HeadframeError):
    """Disk, network or broker; the same call may succeed later."""

"""Whose releases run here: turns what the centre desires into a manifest, or refuses it with a reason.

Decides by signatures alone. Leaves to the installer what compares a release with the one that runs (sequence, what this
agent can run); hands nothing on that is not signed.
"""

from typing import Protocol

from common.errors import TrustError
from common.manifest import Manifest, decode_manifest, release_id
from common.messages import Desired
from common.signing import verify


class Trust(Protocol):
    """What the installer asks before it looks into a release."""

    def check(self, desired: Desired, now_ns: int) -> Manifest:
        """The manifest that may be installed now.

        Args:
            now_ns: the latest time that this gateway has reason to believe, never before the agent was built: a box
                that wakes in 1970 judges nothing by its clock alone.

        Raises:
            TrustError: not signed by whom it must be, or expired.
            WireError: what is signed is no manifest.
        """
        ...

    def recall(self, desired: Desired) -> Manifest:
        """The manifest of a release that was installed here before. Nothing expires: inference goes on.

        Raises:
            TrustError: these are not the bytes that were trusted.
            WireError: what is signed is no manifest.
        """
        ...


class SingleKey:
    """One Ed25519 key signs every release (decision 0005).

    Args:
        release_key: public key (hex) that manifests must be signed with.
    """

    def __init__(self, release_key: str) -> None:
        self._key = release_key

    def check(self, desired: Desired, now_ns: int) -> Manifest:
        """See `Trust.check`."""
        manifest = self.recall(desired)
        if manifest.expires_at_ns < now_ns:
            raise TrustError(f"release {release_id(manifest)} has expired", "Publish it again at the centre.")
        return manifest

    def recall(self, desired: Desired) -> Manifest:
        """See `Trust.recall`."""
        verify(desired.manifest, desired.signature, self._key)
        return decode_manifest(desired.manifest)

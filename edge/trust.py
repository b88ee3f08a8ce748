"""Whose releases run here: turns what the centre desires into a manifest, or refuses it with a reason.

The seam between installer and trust; `common.metadata.TrustedMetadata` stands behind it on a gateway.

Decides by signatures alone. Leaves to the installer what compares a release with the one that runs (sequence, what this
agent can run); hands nothing on that is not signed.
"""

from typing import Protocol

from common.manifest import Manifest
from common.messages import Desired


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

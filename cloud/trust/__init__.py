"""Who stands behind a release: keys, signed metadata, and the ceremony that brings offline keys to it."""

from cloud.trust.keys import Keys
from cloud.trust.repository import Repository

__all__ = ["Keys", "Repository"]

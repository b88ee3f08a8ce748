"""The centre's memory: samples, labels, blobs, states, contributions, runs, releases, audit log."""

from cloud.store.records import Contribution, LabelledSet, LedgerLine, Release, Run, StoredSample
from cloud.store.store import Store

__all__ = ["Contribution", "LabelledSet", "LedgerLine", "Release", "Run", "Store", "StoredSample"]

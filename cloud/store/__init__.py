"""The centre's memory: samples, labels, blobs, states, contributions, runs, releases, audit log."""

from cloud.store.delivery import Gap
from cloud.store.records import Contribution, LabelledSet, Release, Run, StoredSample
from cloud.store.store import Store

__all__ = ["Contribution", "Gap", "LabelledSet", "Release", "Run", "Store", "StoredSample"]

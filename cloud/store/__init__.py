"""The centre's memory: samples, labels, blobs, states, contributions, runs, releases, audit log."""

from cloud.store.delivery import Gap
from cloud.store.records import (
    FAILED,
    QUEUED,
    REFUSED,
    RELEASED,
    RUNNING,
    SUM,
    Assignment,
    Contribution,
    DatasetVersion,
    LabelledSet,
    LayerRecord,
    LedgerLine,
    Release,
    Run,
    StoredSample,
)
from cloud.store.store import Store

__all__ = [
    "FAILED",
    "QUEUED",
    "REFUSED",
    "RELEASED",
    "RUNNING",
    "SUM",
    "Assignment",
    "Contribution",
    "DatasetVersion",
    "Gap",
    "LabelledSet",
    "LayerRecord",
    "LedgerLine",
    "Release",
    "Run",
    "Store",
    "StoredSample",
]

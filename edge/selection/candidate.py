"""What selection chooses from and what it answers. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.messages import Prediction, Scores


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame that the model has looked at; `token` is the caller's own (its pixels)."""

    camera_id: str
    captured_at_ns: int
    embedding: NDArray[np.float32]
    """(d,), as the backbone gives it"""
    predictions: tuple[Prediction, ...]
    token: object
    doubt: float = 0.0
    """How much a detector is to be doubted here, 0..1 (`edge.doubts`)."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A candidate as a rule sees it."""

    candidate: Candidate
    distance: float
    """Squared distance of the embedding to what is normal for the camera; 0 before anything was seen."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A candidate that won its place, and why."""

    candidate: Candidate
    scores: Scores
    reason: str

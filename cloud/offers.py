"""Offers of the fleet: takes them, chooses within a budget, and tells the gateways what is wanted.

Kept in memory: gateways offer again within the hour what was not asked for, so that a restart loses nothing but time.
What is in the store is learnt from it at the first offer.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from cloud.choosing import Choice
from cloud.settings import OfferSettings
from cloud.store import Store
from common import topics
from common.clock import Clock
from common.messages import Message, Offer, Sample, Want

EVERY_S = 10.0
"""Between two choices: offers of one moment at many sites compete with each other."""
LEARN_SAMPLES = 8_000
IDS_MAX = 500  # of one message

Send = Callable[[str, Message], bool]


class Offers:
    """Any thread may call it; `step` about once a second."""

    def __init__(self, settings: OfferSettings, store: Store, clock: Clock, send: Send) -> None:
        self._settings, self._store, self._clock, self._send = settings, store, clock, send
        self._choice = Choice(settings.similarity_max)
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[list[bytes], list[bytes]]] = {}
        self._credit = 1.0
        self._chosen_at_s = clock.monotonic_s()
        self._learnt = False
        self.taken = self.wanted = 0

    def take(self, offer: Offer) -> None:
        """An offer that was checked."""
        with self._lock:
            self._learn()
            self.taken += 1
            wanted, heard = self._answers.setdefault(offer.gateway_id, ([], []))
            (heard if self._choice.offer(offer) else wanted).append(offer.sample_id)

    def stored(self, samples: Sequence[Sample]) -> None:
        """These are in the store, whether they were offered or not."""
        with self._lock:
            if not self._learnt:
                return  # nobody offers; the store will be asked when somebody does
            for sample in samples:
                self._choice.know(
                    sample.backbone, [(sample.sample_id, np.frombuffer(sample.embedding, "<f2").astype(np.float64))]
                )

    def step(self) -> None:
        """Choose when it is time, and send the answers; one that cannot be sent now is tried again."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            if now_s - self._chosen_at_s >= EVERY_S:
                earned = (now_s - self._chosen_at_s) * self._settings.samples_per_hour / 3600.0
                self._credit = min(self._credit + earned, max(1.0, float(self._settings.samples_per_hour)))
                self._chosen_at_s = now_s
                for offer in self._choice.pick(int(self._credit)):
                    self._credit -= 1.0
                    self._want(offer)
            answers, self._answers = self._answers, {}
        for gateway_id, (wanted, heard) in answers.items():
            if not self._answer(gateway_id, wanted, heard):
                with self._lock:
                    later = self._answers.setdefault(gateway_id, ([], []))
                    later[0].extend(wanted)
                    later[1].extend(heard[-IDS_MAX:])

    def want(self, sample_id: bytes) -> bool:
        """A person asks for an offered sample, beside the budget; False when it is not on offer."""
        with self._lock:
            offer = self._choice.want(sample_id)
            if offer:
                self._want(offer)
        return offer is not None

    def pending(self) -> list[Offer]:
        """Offers that wait, most valuable first."""
        with self._lock:
            return self._choice.pending()

    def figures(self) -> dict[str, int]:
        """Counts since the start, and how many wait."""
        with self._lock:
            waiting = len(self._choice.pending())
            return {
                "taken": self.taken,
                "wanted": self.wanted,
                "duplicates": self._choice.duplicates,
                "waiting": waiting,
            }

    def _want(self, offer: Offer) -> None:
        self.wanted += 1
        self._answers.setdefault(offer.gateway_id, ([], []))[0].append(offer.sample_id)

    def _answer(self, gateway_id: str, wanted: list[bytes], heard: list[bytes]) -> bool:
        """In messages of bounded size; a wanted one is not also only heard."""
        unwanted = [name for name in heard if name not in set(wanted)]
        parts = max(1, -(-max(len(wanted), len(unwanted)) // IDS_MAX))
        return all(
            self._send(
                topics.down(gateway_id, "want"),
                Want(
                    wanted=tuple(wanted[part * IDS_MAX : (part + 1) * IDS_MAX]),
                    heard=tuple(unwanted[part * IDS_MAX : (part + 1) * IDS_MAX]),
                ),
            )
            for part in range(parts)
        )

    def _learn(self) -> None:
        if self._learnt:
            return
        self._learnt = True
        for backbone, name, embedding in self._store.recent_embeddings(LEARN_SAMPLES):
            self._choice.know(backbone, [(name, np.frombuffer(embedding, "<f2").astype(np.float64))])

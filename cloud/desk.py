"""What people at the console may see and do; each method is one call of the store, the registry or the service."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from cloud.learning.datasets import read_as_jpeg
from cloud.service import Service
from cloud.store import Gap, Run, StoredSample
from common.errors import OperatorError
from common.ids import layer_hash
from common.manifest import Manifest, decode_manifest
from common.messages import State

CONFLICTS_SHOWN = 50


def content_of(manifest: Manifest) -> str:
    """The same for releases that carry the same layers under different numbers: one that was put together for gateways
    of a canary is worth as much as the one that became active."""
    return layer_hash(msgspec.msgpack.encode((manifest.backbone, manifest.scenarios, manifest.detectors)))[:16]


class Desk:
    """The service as the console's routes need it."""

    def __init__(self, service: Service) -> None:
        self._service, self._store = service, service.store

    def states(self) -> list[State]:
        """Every gateway's last report; `online` says whether it still reports."""
        online = set(self._service.online())
        return [msgspec.structs.replace(state, online=state.gateway_id in online) for state in self._store.states()]

    def counts(self) -> dict[str, Any]:
        """Samples, labels, and what ingest has counted since the start."""
        return {
            **self._store.counts(),
            "ingest": self._service.ingest.figures(),
            "offers": self._service.offers.figures(),
        }

    def offers(self, limit: int) -> list[dict[str, Any]]:
        """What sites offer and nobody asked for yet, most valuable first."""
        kept = ("gateway_id", "site_id", "camera_id", "captured_at_ns", "reason", "payload_bytes")
        return [
            {name: getattr(offer, name) for name in kept}
            | {"sample_id": offer.sample_id.hex(), "value": offer.scores.value}
            for offer in self._service.offers.pending()[:limit]
        ]

    def offer_jpeg(self, sample_id: bytes) -> bytes | None:
        """The thumbnail of an offer."""
        offers = (offer for offer in self._service.offers.pending() if offer.sample_id == sample_id)
        found = next(offers, None)
        return found.thumbnail or None if found else None

    def want(self, sample_id: bytes, author: str) -> None:
        """Ask for an offered sample.

        Raises:
            OperatorError: it is not on offer.
        """
        if not self._service.offers.want(sample_id):
            raise OperatorError("this sample is not on offer", "It was asked for already, or is offered again later.")
        self._store.audit(author, "want", {"sample_id": sample_id.hex()}, self._service.clock.wall_ns())

    def sent(self) -> dict[str, dict[str, int]]:
        """Bytes handed to the broker since the start, by kind of message; and what lies there for all."""
        return {"bytes_out": dict(self._service.link.bytes_out), "shelf": self._service.shelf.figures()}

    def link(self) -> dict[str, int]:
        """How often the link to the broker was made, and messages whose handling failed by a defect (see the log)."""
        link = self._service.link
        return {"connects": link.connects, "handler_errors": link.handler_errors}

    def attempts(self) -> dict[str, Any]:
        """What was tried and refused: how often since the start, and the alarms of the last hour."""
        attempts = self._service.guard.attempts
        return {"counts": attempts.counts(), "fresh": attempts.fresh(self._service.clock.wall_ns())}

    def gaps(self) -> list[Gap]:
        """What of each gateway's spool is accounted for."""
        return self._store.gaps()

    def events(self, limit: int) -> list[dict[str, Any]]:
        """What cameras reported lately, newest first; `has_jpeg` says whether there is a picture."""
        pictures = self._service.events.has_jpeg()
        found: list[dict[str, Any]] = []
        for event in self._service.events.latest(limit):
            row: dict[str, Any] = msgspec.to_builtins(event)
            found.append(row | {"jpeg": "", "has_jpeg": (event.gateway_id, event.event_id) in pictures})
        return found

    def event_jpeg(self, gateway_id: str, event_id: str) -> bytes | None:
        """The picture of an event."""
        return self._service.events.jpeg(gateway_id, event_id)

    def scenarios(self) -> dict[str, list[str]]:
        """Scenario -> classes, in their frozen order."""
        return {name: list(classes) for name, classes in self._service.trainer.scenarios().items()}

    def queue(self, scenario: str, limit: int) -> list[StoredSample]:
        """What waits for a label, what would teach most first."""
        return self._service.review.queue(scenario, limit)

    def samples(self, labelled: bool | None, limit: int) -> list[StoredSample]:
        """Samples, newest first."""
        return self._store.samples(labelled=labelled, limit=limit)

    def jpeg(self, sample_id: bytes) -> bytes | None:
        """A sample's picture."""
        try:
            return self._store.jpeg(sample_id)
        except KeyError:
            return None

    def label(self, labels: Sequence[tuple[bytes, str, str]], author: str) -> int:
        """Add labels (sample, scenario, label); an empty label takes one back. Returns how many were new."""
        now_ns = self._service.clock.wall_ns()
        new = self._store.add_labels(labels, author, now_ns)
        if new:
            self._store.audit(author, "label", {"labels": new}, now_ns)
        return new

    def datasets(self, scenario: str, limit: int) -> dict[str, Any]:
        """Versions of a scenario's dataset, newest first, and of the newest the balance and the conflicts."""
        versions = self._store.versions(scenario, limit)
        found = versions[0].conflicts if versions else []
        return {
            "versions": [
                {"version": v.number, "hash": v.hash, "at_ns": v.at_ns, "counts": v.summary["counts"]} for v in versions
            ],
            "balance": versions[0].summary["balance"] if versions else {},
            "conflicts": found[:CONFLICTS_SHOWN],
            "more": max(0, len(found) - CONFLICTS_SHOWN),
        }

    def picture(self, scenario: str, name: bytes) -> bytes | None:
        """A picture in conflict: an uploaded sample's, or one of a dataset, whose file is still where it was."""
        found = self.jpeg(name)
        if found is not None:
            return found
        conflicts = (conflict for version in self._store.versions(scenario, 1) for conflict in version.conflicts)
        known = (picture for conflict in conflicts for picture in conflict["pictures"])
        file = next((picture["file"] for picture in known if picture["id"] == name.hex() and picture["file"]), "")
        return read_as_jpeg(Path(file)) if file else None

    def decide(self, scenario: str, labels: Sequence[tuple[bytes, str]], author: str) -> None:
        """Decide about labels in conflict; counts from the next version on.

        Raises:
            OperatorError: no such scenario, class or picture; nothing was stored.
        """
        self._service.trainer.decide(scenario, labels, author)

    def start_round(self, author: str) -> str:
        """Queue a round; returns its run id."""
        return self._service.rounds.queue(author)

    def runs(self) -> list[Run]:
        """Rounds, newest first."""
        return self._store.runs()

    def releases(self) -> list[dict[str, Any]]:
        """Releases, newest first, with their gate and scenarios."""
        return [
            {
                "release_id": release.release_id,
                "sequence": release.sequence,
                "status": release.status,
                "created_at_ns": release.created_at_ns,
                "gate": release.gate,
                "note": manifest.note,
                "content": content_of(manifest),
            }
            for release in self._store.releases()
            for manifest in (decode_manifest(release.manifest),)
        ]

    def roll_back(self, release_id: str, author: str) -> str:
        """Publish an earlier release again; every gateway gets it."""
        name = self._service.registry.roll_back(release_id, f"rolled back by {author}")
        now_ns = self._service.clock.wall_ns()
        self._store.audit(author, "roll back", {"to": release_id, "release_id": name}, now_ns)
        self._service.rollouts.replace_all(name, author, f"rolled back to {release_id}")
        return name

    def rollouts(self) -> list[dict[str, Any]]:
        """Every rollout, newest first, with its waves and gates."""
        return self._service.rollouts.list()

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """One of them, with its gateways and its ledger."""
        return self._service.rollouts.show(rollout_id)

    def start_rollout(self, release_id: str, author: str, why: str) -> str:
        """Send a release on its way again; returns the rollout's id."""
        return self._service.rollouts.launch(release_id, author, why)

    def order_rollout(self, kind: str, rollout_id: str, author: str, why: str) -> None:
        """Pause, resume, abort or roll back."""
        self._service.rollouts.order(kind, rollout_id, author, why)

    def audits(self, limit: int) -> list[dict[str, Any]]:
        """Who did what, newest first."""
        return self._store.audits(limit)

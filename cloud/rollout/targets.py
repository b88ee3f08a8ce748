"""Which signed release a gateway is told: the active one, with the changes of the rollouts that it takes part in.

Releases that were never published as such are put together here and signed under the next number, once for all gateways
that need the same.
"""

from typing import Final

from cloud.registry import Registry
from cloud.rollout.assembly import content_key, has_parts, with_parts
from cloud.rollout.engine import Engine
from cloud.rollout.state import Rollout
from cloud.store import Store
from common.errors import OperatorError
from common.manifest import Manifest

KEPT_MAX: Final = 4096
"""Answers kept: of recipes and running releases there are few, however many gateways."""
ASSEMBLED: Final = "assembled"
"""Status of a release that was put together of others."""

Recipe = tuple[tuple[str, bool], ...]


class Targets:
    """Knows the active release; the engine and its recipes come as arguments."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._carries: dict[tuple[str, str], bool] = {}
        self._wanted: dict[tuple[str, Recipe, str], str | None] = {}
        self.active = ""
        """Release that the fleet runs."""

    def refresh(self) -> None:
        """Another process may have published."""
        self.active = next((r.release_id for r in self._store.releases() if r.status == "active"), "")

    def wanted(self, engine: Engine, gateway_id: str, running: str) -> str | None:
        """The release that this gateway is to run; None before the first release.

        Args:
            running: what it says it runs: it takes no lower number, so older layers come to it under a new one.
        """
        key = self.active, engine.recipe(gateway_id), running
        if key not in self._wanted:
            if len(self._wanted) > KEPT_MAX:
                self._wanted.clear()
            self._wanted[key] = self._find(engine, key[1], running)
        return self._wanted[key]

    def _find(self, engine: Engine, recipe: Recipe, running: str) -> str | None:
        active = self._registry.manifest(self.active)
        if active is None:
            return None
        content = active
        for name, forward in recipe:
            rollout = engine.get(name)
            source = self._registry.manifest(rollout.started.release_id if forward else rollout.before)
            if source is not None:
                content = with_parts(content, source, rollout.started.parts)
        now = self._registry.manifest(running)
        if now is not None and now.sequence > active.sequence and content_key(now) == content_key(content):
            return running
        if (now is None or now.sequence <= active.sequence) and content_key(content) == content_key(active):
            return self.active
        return self._signed(content, above=now.sequence if now else 0)

    def _signed(self, content: Manifest, above: int) -> str:
        """The newest release of these layers with a number above the given one; signed now if there is none."""
        key = content_key(content)
        for release in self._store.releases():
            if release.sequence <= above:
                break
            manifest = self._registry.manifest(release.release_id)
            if manifest is not None and content_key(manifest) == key:
                return release.release_id
        return self._registry.sign(content, {"passed": True}, "put together of releases", status=ASSEMBLED)

    def carries(self, release_id: str, rollout: Rollout) -> bool:
        """Whether a release has what the rollout brings."""
        key = release_id, rollout.rollout_id
        if key not in self._carries:
            if len(self._carries) > KEPT_MAX:
                self._carries.clear()
            manifest = self._registry.manifest(release_id)
            source = self._registry.manifest(rollout.started.release_id)
            self._carries[key] = (
                manifest is not None and source is not None and has_parts(manifest, source, rollout.started.parts)
            )
        return self._carries[key]

    def merged(self, rollout: Rollout, *, forward: bool) -> str:
        """The active release with the rollout's change, or without it; signed."""
        active = self._registry.manifest(self.active)
        source = self._registry.manifest(rollout.started.release_id if forward else rollout.before)
        if active is None or source is None:
            raise OperatorError("the release that it comes from is not in the store", "Restore the database.")
        content = with_parts(active, source, rollout.started.parts)
        return self._signed(content, above=active.sequence if forward else self._newest())

    def _newest(self) -> int:
        return max((release.sequence for release in self._store.releases()), default=0)


def new_bytes(active: Manifest, new: Manifest) -> int:
    """What a gateway without a head of its own has to fetch, at most."""
    held = {layer.hash for layer in active.layers_for("")}
    return sum(layer.size_bytes for layer in new.layers_for("") if layer.hash not in held)

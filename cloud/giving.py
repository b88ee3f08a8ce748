"""What gateways ask for: layers and proofs, published once for all where they take that, else in parts for each.

Decides which of the two; leaves to `cloud.registry` what there is, to `cloud.shelf` what lies on the broker.
"""

from collections import Counter
from typing import Final

from cloud.registry import Registry
from cloud.reported import Reported
from cloud.settings import RolloutSettings
from cloud.shelf import Shelf
from common.clock import Clock
from common.messages import Fetch, LayerPart, Shelved

COUNTED_S: Final = 10.0
"""How old the count of gateways at each site may be."""


class Giving:
    """Answers a gateway's `Fetch`."""

    def __init__(
        self, settings: RolloutSettings, registry: Registry, reported: Reported, shelf: Shelf, clock: Clock
    ) -> None:
        self._site_bytes_per_s = settings.site_bytes_per_s
        self._registry, self._reported, self._shelf, self._clock = registry, reported, shelf, clock
        self._sites: Counter[str] = Counter()
        self._counted_s = float("-inf")

    def answer(self, gateway_id: str, fetch: Fetch) -> Shelved | LayerPart | None:
        """What to say to it; None: nothing now, it asks again."""
        if fetch.shared:
            shelved = self._shelve(gateway_id, fetch)
            if shelved is not None:
                return shelved
        part = self._registry.part(fetch)
        return part if not part.data or self._shelf.spare(len(part.data)) else None

    def _shelve(self, gateway_id: str, fetch: Fetch) -> Shelved | None:
        """Lay it out; None when it is not here, or there is no room for it."""
        found = self._registry.find(fetch)
        base = found[1] if found else ""
        try:
            lies = (self._shelf.pack(found[0]), found[0]) if found else self._shelf.find(fetch.layer)
        except ValueError:  # over the bound of a parcel
            return None
        if lies is None or not self._shelf.lay_out(*lies, fetch.offset, silent=fetch.silent):
            return None
        return Shelved(
            layer=fetch.layer,
            parcel=lies[0].parcel,
            base=base,
            wait_s=self._shelf.wait_s(),
            bytes_per_s=self._share_of(gateway_id),
        )

    def _share_of(self, gateway_id: str) -> float:
        """Of its site's line, as if all its gateways that are online fetched at once."""
        if not self._site_bytes_per_s:
            return 0.0
        now_s = self._clock.monotonic_s()
        if now_s - self._counted_s > COUNTED_S:
            self._sites, self._counted_s = self._reported.online_by_site(), now_s
        return self._site_bytes_per_s / max(1, self._sites[self._reported.site_of(gateway_id)])

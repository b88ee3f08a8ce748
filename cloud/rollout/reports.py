"""What gateways report, as the engine sees it.

An agent that does not tell how a release does (`State.health`) is watched by its looks alone: it is healthy when it
has gone on looking under the new release.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from cloud.rollout.rules import COMMITTED, ROLLED_BACK, Report
from cloud.settings import RolloutSettings
from common.messages import ReleaseHealth, State

_REFUSED = "refused "


@dataclass(frozen=True, slots=True)
class _Since:
    """When a gateway was first seen on a release."""

    release_id: str
    looks: int


class Reports:
    """Makes reports of states; remembers the few numbers that older agents make necessary."""

    def __init__(self, settings: RolloutSettings) -> None:
        self._settings = settings
        self._since: dict[str, _Since] = {}
        self._zones: dict[str, ZoneInfo] = {}

    def make(self, states: Mapping[str, State], seen_ns: Mapping[str, int], now_ns: int) -> dict[str, Report]:
        """All of them.

        Args:
            seen_ns: when those that are online were last heard of.
        """
        offsets: dict[str, float] = {}
        found = {}
        for name, state in states.items():
            if state.site_id not in offsets:
                offsets[state.site_id] = self._offset_s(state.site_id, now_ns)
            found[name] = Report(
                gateway_id=name,
                site_id=state.site_id,
                seen_ns=seen_ns.get(name, min(state.at_ns, now_ns)),
                online=name in seen_ns,
                release_id=state.release_id,
                health=state.health or self._guess(state),
                utc_offset_s=offsets[state.site_id],
            )
        return found

    def _guess(self, state: State) -> tuple[ReleaseHealth, ...]:
        if not state.release_id:
            return ()
        since = self._since.get(state.gateway_id)
        if since is None or since.release_id != state.release_id or since.looks > state.looks:
            since = self._since[state.gateway_id] = _Since(state.release_id, state.looks)
        running = ReleaseHealth(release_id=state.release_id, phase=COMMITTED, frames=state.looks - since.looks)
        if not state.install.startswith(_REFUSED):
            return (running,)
        name, _, reason = state.install.removeprefix(_REFUSED).partition(": ")
        return running, ReleaseHealth(release_id=name, phase=ROLLED_BACK, reason=reason)

    def _offset_s(self, site_id: str, now_ns: int) -> float:
        name = self._settings.timezones.get(site_id, self._settings.timezone)
        if name not in self._zones:
            self._zones[name] = ZoneInfo(name)
        offset = datetime.datetime.fromtimestamp(now_ns / 1e9, self._zones[name]).utcoffset()
        return offset.total_seconds() if offset else 0.0

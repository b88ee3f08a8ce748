"""Which cameras a process watches, with what share of the gateway's means; and what fits into its memory. Pure.

Before anything runs, `plan` answers whether all cameras fit into `[budget]`: first worker processes are given up, then
the cameras of the lowest priority get a half, a quarter, an eighth of their looks and of the memory for their packets,
then those of the next (`edge.rationing` has the order). What even so does not fit is refused, with what it would take:
an agent that the kernel ends for want of memory watches nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.errors import ConfigError
from edge.rationing import STEPS, Rationing
from edge.settings import CameraSettings, EdgeSettings

CAMERAS_PER_WORKER: Final = 48
"""From here on a second process pays: one holds 64 sub-streams on 0.6 of a core, and a process costs 150 MB."""
MB: Final = 1_000_000
AGENT_BYTES: Final = 260 * MB
"""Of the agent with a float release loaded, before its first camera: 243 MB resident were measured."""
WORKER_BYTES: Final = 150 * MB
"""Of a worker process, without what it shares with others: 171 MB were measured with two cameras on main streams."""
DECODER_BYTES: Final = {True: 4 * MB, False: 16 * MB}
"""Of one camera, by whether it has a sub-stream: decoder, frames under way, what selection holds; without packets."""
PACKETS_BYTES_MIN: Final = MB
"""Less holds no group of a main stream."""


@dataclass(frozen=True, slots=True)
class Roster:
    """What a process is told to watch."""

    cameras: tuple[CameraSettings, ...]
    samples_per_hour: float
    """Of these cameras together."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Camera -> share of its looks and memory that it may have, where that is not all."""
    cores: float | None = None
    """CPU seconds per second that the process may use; None is without limit."""

    def of(self, name: str) -> float:
        """The share of a camera."""
        return self.shares.get(name, 1.0)

    def part(self, cameras: Sequence[CameraSettings], processes: int) -> "Roster":
        """For one of several processes, which has these cameras of it."""
        share = len(cameras) / max(1, len(self.cameras))
        return Roster(
            tuple(cameras),
            self.samples_per_hour * share,
            {camera.id: self.of(camera.id) for camera in cameras if camera.id in self.shares},
            self.cores / processes if self.cores else None,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How the cameras of a gateway run within its budget."""

    roster: Roster
    workers: int
    """Processes besides the agent's own; 0: all in one."""
    memory_bytes: int
    """What it will take at most, by the estimates above."""

    @property
    def sentence(self) -> str:
        """Which cameras run at which rate; empty when all run as they should."""
        by_share: dict[float, list[str]] = {}
        for name, share in self.roster.shares.items():
            by_share.setdefault(share, []).append(name)
        parts = [f"{', '.join(names)} at {share:g}" for share, names in sorted(by_share.items(), reverse=True)]
        return f"budget.memory_mb is too small for all cameras at their full rate: {'; '.join(parts)}" if parts else ""


def worker_count(settings: EdgeSettings, cores: int) -> int:
    """Worker processes for a gateway: as set, else one per core once the cameras need them; 0 is none. Never more than
    `budget.cores` allows."""
    if settings.budget.cores:
        cores = min(cores, max(1, round(settings.budget.cores)))
    if settings.workers is not None:
        wanted = min(settings.workers, len(settings.cameras))
        return min(wanted, cores) if settings.budget.cores else wanted
    needed = -(-len(settings.cameras) // CAMERAS_PER_WORKER)
    return 0 if needed < 2 else min(cores, needed)


def share_out(cameras: Sequence[CameraSettings], workers: int) -> list[tuple[CameraSettings, ...]]:
    """Cameras per worker, dealt in turn, so that neighbours in the file (often alike) are spread; none is empty."""
    return [tuple(cameras[number::workers]) for number in range(min(workers, len(cameras)))]


def deal_again(
    before: Sequence[Sequence[CameraSettings]], cameras: Sequence[CameraSettings]
) -> list[tuple[CameraSettings, ...]]:
    """Cameras per worker after a change: who was somewhere stays there, who is new goes where there are fewest."""
    wanted = {camera.id: camera for camera in cameras}
    dealt = [[wanted.pop(camera.id) for camera in row if camera.id in wanted] for row in before]
    for camera in wanted.values():
        min(dealt, key=len).append(camera)
    return [tuple(row) for row in dealt]


def packet_bytes(camera: CameraSettings, share: float) -> int:
    """How many bytes of encoded video a camera may keep with a share of its memory."""
    return min(camera.memory_bytes_max, max(PACKETS_BYTES_MIN, round(share * camera.memory_bytes_max)))


def plan(settings: EdgeSettings, cores: int, workers: int | None = None) -> Plan:
    """How the cameras run.

    Args:
        cores: that the agent may run on.
        workers: processes that there are already; None: not yet decided.

    Raises:
        ConfigError: `budget.memory_mb` does not hold them, even with an eighth of everything.
    """
    cameras = settings.cameras
    counts = [workers] if workers is not None else [worker_count(settings, cores)]
    if workers is None and settings.workers is None:
        counts = list(range(counts[0], -1, -1))
        counts = [count for count in counts if count != 1]  # one worker is a process for nothing
    limit = settings.budget.memory_mb * MB if settings.budget.memory_mb else None
    rationing = Rationing({camera.id: camera.priority for camera in cameras})
    tries = [(count, 0) for count in counts]
    tries += [(counts[-1], level) for level in range(1, rationing.level_max + 1)]
    for count, level in tries:
        rationing.level = level
        shares = {camera.id: rationing.share(camera.id) for camera in cameras}
        needed = _memory_bytes(cameras, shares, count)
        if limit is None or needed <= limit:
            less = {name: share for name, share in shares.items() if share < 1}
            roster = Roster(cameras, settings.selection.samples_per_hour, less, settings.budget.cores)
            return Plan(roster, count, needed)
    raise ConfigError(
        f"budget.memory_mb = {settings.budget.memory_mb} does not hold {len(cameras)} cameras, even at 1/{2**STEPS} of"
        f" their rate: that takes {-(-needed // MB)}",
        "Raise it, take cameras away, or give them their sub-streams.",
    )


def _memory_bytes(cameras: Sequence[CameraSettings], shares: Mapping[str, float], workers: int) -> int:
    held = sum(DECODER_BYTES[bool(c.substream)] + packet_bytes(c, shares[c.id]) for c in cameras)
    return AGENT_BYTES + workers * WORKER_BYTES + held

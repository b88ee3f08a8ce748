"""`headframe bench attacks`: everything that an update must withstand, played against a gateway that runs a release.

The attacker holds the wire, knows all that was ever published, and has in turn no key, each single key, and the whole
serving machine. The gateway is the real installer with the real trust. After every case the release that runs, the slot
that the next start reads and every layer it names must be what they were; and in between honest releases must still be
installed, or a gateway that refuses everything would pass.
"""

import logging
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from common.errors import EnvironmentFault
from common.manifest import release_id
from common.messages import Desired, Fetch, Shelved
from simulations.bench import _parcels
from simulations.bench._forgery import SERVING, THEFTS, Forger, Theft, reaches, tries
from simulations.bench._replays import (
    DAY_NS,
    FROZEN_DAYS,
    History,
    assignments,
    floods,
    mixtures,
    mutations,
    rollbacks,
    thresholds,
)
from simulations.bench._tampering import Wire, kinds, tamper
from simulations.bench._yard import BEGIN_NS, PAUSE_S, SCENARIOS, Centre, Gateway, HandClock

ROUNDS, QUICK_ROUNDS = 40, 8
"""Honest releases between which attacks are played."""
MUTATIONS, MIXTURES, TAMPERS_EACH, SHARED_EACH, PROOFS = 30, 10, 4, 3, 4  # in each round
RECOVERY_STEPS: Final = 12
"""Of a minute each: a gateway waits ten minutes for what the centre says takes long."""
REASONS_MAX: Final = 6
ROTATED: Final = ("timestamp", "snapshot", "assignments", "scenario-belt", "targets", "root")
FORWARDED: Final[dict[str, tuple[str, ...]]] = {
    "timestamp": ("timestamp",),
    "snapshot": ("snapshot", "timestamp"),  # a snapshot is seen only when a timestamp names it
    "assignments": ("assignments",),
}
"""What is pushed ahead, and with which keys."""


@dataclass
class Kind:
    """What came of one kind of attack."""

    cases: int = 0
    refused: int = 0
    ignored: int = 0
    """Not what was asked for: passed over without a word, and asked for again."""
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class Figures:
    """All that is counted."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    wedged: dict[str, int] = field(default_factory=dict)
    """By kind: gateways on which, after an attack where releases are published for all, the honest release could not be
    installed any more."""
    unharmed: int = 0
    """Those on which it could."""
    harmless: int = 0
    """A change that touched nothing of what was signed: the honest release was installed."""
    honest: int = 0
    honest_installed: int = 0
    reached: dict[str, list[str]] = field(default_factory=dict)
    recovered: dict[str, bool] = field(default_factory=dict)


class Siege:
    """The centre, the gateway, and the attacks in between."""

    def __init__(self, folder: Path, seed: int, said: "Said") -> None:
        self._said = said
        self._folder, self._rng = folder, random.Random(seed)
        self._clock = HandClock()
        self.centre = Centre(folder / "centre", self._clock)
        self.gateway = Gateway(folder / "gateway", self.centre.repository.root(), self._clock)
        self.figures, self._history = Figures(), History()
        self._next: Desired | None = None
        self._copies = 0
        for _ in range(3):  # something to replay, and layers to be a delta of
            self.advance()

    @property
    def honest(self) -> Desired:
        """The message that the gateway is to get next."""
        if self._next is None:
            changed = (
                SCENARIOS if not self.centre.manifests else self._rng.choice([SCENARIOS, *((n,) for n in SCENARIOS)])
            )
            self._next = self.centre.desired(self.centre.publish(*changed))
            self._history.others.append(self.centre.desired(self.centre.manifests[-1], "gw-2"))
        return self._next

    def advance(self) -> None:
        """The honest message arrives, and the release must run."""
        honest = self.honest
        self.gateway.tell(honest)
        self.gateway.serve(self.centre)
        self.figures.honest += 1
        self.figures.honest_installed += self.gateway.runs == release_id(self.centre.manifests[-1])
        self._history.mine.append(honest)
        self._next = None

    def play(self, kind: str, message: Desired, gateway: Gateway | None = None) -> None:
        """One message of the attacker's; whatever the gateway then asks for, it gets."""
        target = gateway or self.gateway
        before, self._said.last = target.fingerprint(), ""
        target.tell(message)
        target.serve(self.centre)
        self._judge(kind, target, before)

    def _judge(self, kind: str, gateway: Gateway, before: str) -> None:
        if self._is_harmless(gateway):
            self.figures.harmless += 1
            return
        found = self.figures.kinds.setdefault(kind, Kind())
        found.cases += 1
        if gateway.fingerprint() != before:
            found.accepted += 1
            found.reasons[f"ACCEPTED: {gateway.installer.outcome}"] += 1
        elif gateway.installer.outcome or self._said.last:
            found.refused += 1
            found.reasons[_shape(gateway.installer.outcome or self._said.last)] += 1
        else:
            found.ignored += 1
            found.reasons["not the part that was asked for"] += 1

    def _is_harmless(self, gateway: Gateway) -> bool:
        """Whether the honest release was installed after all, to the bit: nothing of what is signed was changed."""
        if self._next is None or gateway.runs != release_id(self.centre.manifests[-1]) or not gateway.intact():
            return False
        if gateway is not self.gateway:
            return True
        self._history.mine.append(self._next)
        self._next = None
        return True

    def spare(self) -> Gateway:
        """A copy of the gateway as it is, to be spoilt."""
        self._copies += 1
        return self.gateway.copy(self._folder / f"copy-{self._copies % 4}")

    # --- the attacks ----------------------------------------------------------------------------

    def without_keys(self, *, mutated: int, mixed: int) -> None:
        """Replay, mix, damage and flood."""
        rng = self._rng
        for _, message in rollbacks(self._history, self.honest, rng):  # on copies: they know nothing of the new set yet
            self.play("rollback", message, self.spare())
        for what, messages in (
            ("mix and match", islice(mixtures(self._history, self.honest, rng), mixed)),
            ("assignment", assignments(self.centre, self._history, self.honest, rng)),
            ("endless data", floods(self.honest, rng)),
        ):
            for _, message in messages:
                self.play(what, message)
        for _, message in thresholds(self.centre, self.honest, rng):  # timestamp and snapshot in them are right
            self.play("threshold not met", message, self.spare())
        for _ in range(mutated):
            self.play("mutation", next(mutations(self.honest, rng))[1])

    def freeze(self) -> None:
        """Time passes while the attacker shows the same; and a box that wakes in 1970 is shown what is long over."""
        for days in FROZEN_DAYS:
            honest = self.honest
            self._clock.now_ns += days * DAY_NS
            self.play("freeze", honest, self.spare())
            self._clock.now_ns -= days * DAY_NS
        clock = HandClock()
        clock.now_ns = BEGIN_NS - self._rng.randrange(700, 2000) * DAY_NS
        long_ago = Centre(self._folder / f"long-ago-{self._copies}", clock)
        message = long_ago.desired(long_ago.publish(*SCENARIOS))
        clock.now_ns = 0
        self._copies += 1
        fresh = Gateway(self._folder / f"fresh-{self._copies}", long_ago.repository.root(), clock)
        self.play("freeze", message, fresh)

    def with_keys(self, theft: Theft) -> None:
        """Everything that is worth trying with some keys, each on a copy of the gateway."""
        kind = "arbitrary files" if not theft.roles else f"stolen: {theft.name}"
        for _, edit in tries(theft):
            forger = Forger(self.centre, theft, self.honest, self._rng.randrange(2**31))
            self.play(kind, edit(forger), self.spare())

    def reach(self, theft: Theft) -> None:
        """Which scenarios' heads these keys are enough for."""
        found = []
        for name in SCENARIOS:
            forger = Forger(self.centre, theft, self.honest, self._rng.randrange(2**31))
            victim = self.spare()
            victim.tell(forger.scenario(name))
            victim.serve(self.centre)
            if victim.runs != self.gateway.runs:
                found.append(name)
        self.figures.reached[theft.name] = found

    def rotate(self, role: str) -> None:
        """The role gets new keys and the gateway hears of it; then the old ones are used, and the serving machine's."""
        revoked = Forger(self.centre, Theft("", (role,)), self.honest, 0).stolen
        self.advance()
        if not self.centre.repository.rotate(role):
            raise EnvironmentFault(f"the rotation of {role} is not in force", "This is a defect; please report it.")
        self.advance()
        machine = Theft("", tuple(item for item in SERVING if item != role))
        for name in SCENARIOS:
            for edit in (
                Forger.whole,
                Forger.new_root,
                partial(Forger.scenario, name=name),
                partial(Forger.beyond, field="backbone"),
            ):
                forger = Forger(self.centre, machine, self.honest, self._rng.randrange(2**31), revoked)
                self.play("revoked keys", edit(forger), self.spare())

    def fast_forward(self, role: str) -> None:
        """A stolen key pushes its role's version far ahead: no honest one is newer. New keys mend it."""
        victim = self.spare()
        theft = Theft("", FORWARDED[role])
        forger = Forger(self.centre, theft, self.honest, self._rng.randrange(2**31))
        self.play("fast forward", forger.forward(role, self._history.mine[-1]), victim)
        stuck = self._installs(victim, self.honest)
        for stolen in theft.roles:
            self.centre.repository.rotate(stolen)
        self._next = self.centre.desired(self.centre.manifests[-1])
        self.figures.recovered[role] = not stuck and self._installs(victim, self.honest)

    def _installs(self, gateway: Gateway, message: Desired) -> bool:
        gateway.tell(message)
        gateway.serve(self.centre)
        return gateway.runs == release_id(self.centre.manifests[-1])

    def tamper(self, kind: str, cases: int) -> None:
        """The message is honest, the layer's bytes are not."""
        for _ in range(cases):
            self.gateway.tell(self.honest)
            before, self._said.last = self.gateway.fingerprint(), ""
            if not self.gateway.asked:  # what an earlier case left was enough
                self._judge(kind, self.gateway, before)
                continue
            fetch = self.gateway.asked.pop(0)
            wire = Wire(fetch, self.centre.layers[fetch.layer], self._old(fetch))
            for part in tamper(kind, wire, self._rng):
                self.gateway.installer.on_layer(part)
            self.gateway.installer.step()
            self._judge(kind, self.gateway, before)

    def share(self, kind: str, cases: int) -> None:
        """The message is honest; where releases are published for all, somebody else writes. Each on a copy, which must
        get the honest release all the same, by itself, soon after."""
        for _ in range(cases):
            victim = self.spare()
            victim.tell(self.honest)
            before, self._said.last = victim.fingerprint(), ""
            if victim.asked:
                fetch = victim.asked.pop(0)
                broker = _parcels.Broker(fetch, self.centre.layers[fetch.layer], self._old(fetch))
                for came in _parcels.attack(kind, broker, self._rng):
                    if isinstance(came, Shelved):
                        victim.installer.on_shelved(came)
                    else:
                        victim.installer.on_piece(*came)
            victim.installer.step()
            self._judge(kind, victim, before)
            self._must_recover(kind, victim)

    def _must_recover(self, kind: str, victim: Gateway) -> None:
        for _ in range(RECOVERY_STEPS):
            self._clock.now_s += PAUSE_S
            victim.installer.step()
            victim.serve(self.centre)
        if victim.runs == release_id(self.centre.manifests[-1]) and victim.intact():
            self.figures.unharmed += 1
        else:
            self.figures.wedged[kind] = self.figures.wedged.get(kind, 0) + 1

    def by_proof(self, mutated: int) -> None:
        """Damaged proofs, each named by its own hash: what is verified is what was verified before."""
        for _ in range(mutated):
            target, self._said.last = self.gateway, ""
            before = target.fingerprint()
            target.tell_by_proof(next(mutations(self.honest, self._rng))[1])
            target.serve(self.centre)
            self._judge("shared: damaged proof", target, before)

    def _old(self, fetch: Fetch) -> bytes:
        names = [name for name in self.centre.layers if name not in (fetch.layer, self.centre.backbone.hash)]
        return self.centre.layers[self._rng.choice(names)]


def bench_attacks(*, quick: bool) -> dict[str, Any]:
    """Figures of docs/benchmarks.md, `attacks`."""
    began_s = time.process_time()
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with TemporaryDirectory(prefix="headframe-bench-") as name, _listen() as said:
        siege = Siege(Path(name), 1, said)
        _round(siege, 0)
        before_kb = _memory_kb()  # everything is loaded by now
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("attacks", total=rounds + len(ROTATED) + len(FORWARDED))
            for number in range(1, rounds):
                _round(siege, number)
                progress.advance(task)
            for theft in THEFTS:
                siege.reach(theft)
            for role in FORWARDED:
                siege.fast_forward(role)
                siege.advance()
                progress.advance(task)
            for role in ROTATED:
                siege.rotate(role)
                progress.advance(task)
            siege.advance()
    figures = siege.figures
    cases = sum(kind.cases for kind in figures.kinds.values())
    return {
        "cases": cases,
        "accepted": sum(kind.accepted for kind in figures.kinds.values()),
        "refused": sum(kind.refused for kind in figures.kinds.values()),
        "ignored": sum(kind.ignored for kind in figures.kinds.values()),
        "wedged": sum(figures.wedged.values()),
        "unharmed": figures.unharmed,
        "harmless": figures.harmless,
        "honest": figures.honest,
        "honest_installed": figures.honest_installed,
        "recovered": figures.recovered,
        "reached": figures.reached,
        "reached_as_designed": all(
            figures.reached[theft.name] == [name for name in SCENARIOS if reaches(theft, name)] for theft in THEFTS
        ),
        "table": {
            name: {
                "cases": kind.cases,
                "refused": kind.refused,
                "ignored": kind.ignored,
                "accepted": kind.accepted,
                "reasons": dict(kind.reasons.most_common(REASONS_MAX)),
            }
            for name, kind in sorted(figures.kinds.items())
        },
        "memory_mb": round((_memory_kb() - before_kb) / 1024, 1),
        "cpu_ms_per_case": round(1e3 * (time.process_time() - began_s) / cases, 1),
    }


class Said(logging.Handler):
    """What the gateway logs of a delta that it lets go, to fetch the file in its place: no refusal of the release."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


@contextmanager
def _listen() -> Iterator[Said]:
    """The gateway's log is heard and not printed: a refusal is what is wanted here."""
    said, log = Said(), logging.getLogger("edge")
    log.addHandler(said)
    log.propagate = False
    try:
        yield said
    finally:
        log.removeHandler(said)
        log.propagate = True


def _memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _round(siege: Siege, number: int) -> None:
    """Attacks around one honest release, which is then installed."""
    siege.without_keys(mutated=MUTATIONS, mixed=MIXTURES)
    for theft in THEFTS[number % 4 :: 4]:
        siege.with_keys(theft)
    if number % 4 == 0:
        siege.freeze()
    for kind in kinds():
        siege.tamper(kind, TAMPERS_EACH)
    for kind in _parcels.ATTACKS:
        siege.share(kind, SHARED_EACH)
    siege.by_proof(PROOFS)
    siege.advance()


def _shape(reason: str) -> str:
    """A reason without names and numbers, so that like ones are counted together."""
    short = re.sub(r"\br\d+-[0-9a-f]{8}\b", "R", reason)
    short = re.sub(r"\b[0-9a-f]{12,64}\b", "H", short)
    return re.sub(r"\d+", "N", short)[:160]

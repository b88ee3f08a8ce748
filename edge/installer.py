"""Releases on the gateway: from the one that runs to the one the centre wants, and back by itself when it hurts.

    fetching → testing → shadow → probation → committed
                  └────────┴─────────┴──────→ rolled-back

Decides which release runs here. Leaves who may sign to `edge.trust`, the layers' bytes to `edge.download`, loading and
self-test to `edge.loading`, what is on disk to `edge.slots`, the rules of shadow and probation to `edge.trial`, and the
looking (and the swap, between two frames) to the `Stage`. What runs goes on through all of it; a power cut at any
instant leaves the old or the new release. Loading runs aside, in a thread of its own: neither link nor heartbeat waits.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from common.backbone import Opener, open_session
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError
from common.manifest import Manifest, release_id
from common.messages import Desired, LayerPart, ReleaseHealth, Shelved
from edge.download import Download, LayerFolder, Request
from edge.fit import check_fit, check_room
from edge.loading import Loaded, Loader
from edge.perception import Model
from edge.settings import InstallSettings
from edge.slots import CURRENT, PREVIOUS, GoneBack, Slot, Slots
from edge.tally import Observation, Pair, Tally
from edge.trial import Before, Outcome, judge_probation, judge_shadow
from edge.trust import Trust
from edge.variants import VariantChoice

log = logging.getLogger(__name__)

LAYERS: Final = "layers"
"""Folder of the layers within the installer's own."""
BUILT_AT_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01: no clock of a working box is earlier
MOVED_MAX: Final = 64
"""Classes of which it is told how they moved, those named most often: each heartbeat carries them."""
BOOT_AGAIN_S: Final = (1.0, 60.0)
"""A slot that could not be read at the start is tried again after so long, and then ever less often."""


class Phase(StrEnum):
    """Of a release on its way, as `ReleaseHealth` reports it."""

    FETCHING = "fetching"
    TESTING = "testing"
    SHADOW = "shadow"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"


class Stage(Protocol):
    """Where models look: a `Lookout`, or `Workers`."""

    def hand_over(
        self, model: Model | None, beside: Model | None = None, *, on_trial: bool = False, rescue: bool = False
    ) -> None:
        """See `Lookout.hand_over`."""
        ...

    def observe(self) -> Observation:
        """See `Lookout.observe`."""
        ...


Aside = Callable[[Callable[[], None]], None]
"""Runs something that may take long, or hang, without making the caller wait."""


def in_a_thread(work: Callable[[], None]) -> None:
    """The `Aside` of an agent."""
    threading.Thread(target=work, name="install", daemon=True).start()


@dataclass
class _Candidate:
    """The release that is being brought here. One phase after the other; it never goes back to an earlier one."""

    desired: Desired
    manifest: Manifest
    download: Download
    phase: Phase = Phase.FETCHING
    began_s: float = 0.0
    """Of the phase (monotonic)."""
    loaded: Loaded | None = None
    fault: Exception | None = None
    """Of the test."""

    @property
    def name(self) -> str:
        return release_id(self.manifest)


@dataclass(frozen=True, slots=True)
class _Probation:
    """The running release is not committed yet."""

    began_s: float
    before: Before
    old: Model | None
    shadow: Pair
    """What the two said before, as if they had had the places that they have now."""


class Installer:
    """Brings the gateway from the release it runs to the one the centre wants.

    Args:
        folder: holds `layers/<hash>` and the files of `edge.slots`.
        trust: says which manifests may be installed.
        request: publishes a Fetch; False when the link is down (asked again later).
        stage: where models look.
        settings: how a release proves itself.
        opener, precision: see `Loader`.
        aside: runs load and self-test.
    """

    def __init__(
        self,
        folder: Path,
        trust: Trust,
        site_id: str,
        clock: Clock,
        request: Request,
        stage: Stage,
        settings: InstallSettings | None = None,
        opener: Opener = open_session,
        precision: str = "auto",
        aside: Aside = in_a_thread,
    ) -> None:
        self._aside = aside
        self._settings = settings or InstallSettings()
        self.variant = VariantChoice("", "no release yet")
        """Which variant of the backbone runs, and why."""
        self._trust, self._site_id, self._clock = trust, site_id, clock
        self._request, self._stage = request, stage
        self._lock = threading.RLock()
        self._candidate: _Candidate | None = None
        self._model: Model | None = None
        self._slot: Slot | None = None
        """Of the running model."""
        self._probation: _Probation | None = None
        self._owed: GoneBack | None = None
        """A roll-back that the disk has not taken yet."""
        self._began_s = clock.monotonic_s()
        self._starts = 0
        self._boot_again_s: float | None = None
        self._boot_delay_s = BOOT_AGAIN_S[0]
        self._start_is_counted = self._stopped = False
        self._compared = Pair()
        """What the running release and the one before it, then beside it, said while it was on trial."""
        self._gone: ReleaseHealth | None = None
        """The release that went back last, as it was then."""
        self.outcome = ""
        """The last install in words, reported to the centre."""
        self.bytes_down = 0
        self._folder = folder
        self._layers = LayerFolder(folder / LAYERS)
        self._slots = Slots(folder)
        self._loader = Loader(self._layers, site_id, self._settings, opener, precision)

    def layer_path(self, name: str) -> Path:
        """Where a layer of this hash is, or will be."""
        return self._layers.path(name)

    def boot(self) -> Model | None:
        """Run the release that ran last, or the one before it when that one no longer loads or brings the agent down
        again and again; None on a new box. What cannot be read now is tried again by `step`."""
        with self._lock:
            self._boot_again_s = None
            try:
                if not self._start_is_counted:
                    self._count_start()
                    self._start_is_counted = True
            except (HeadframeError, OSError) as error:
                log.error("the start could not be counted, the release before is run: %s", error)
                if _passes(error):
                    self._boot_again_s = self._clock.monotonic_s() + self._boot_delay_s
                return self._boot_from((PREVIOUS, CURRENT))
            return self._boot_from((CURRENT, PREVIOUS))

    def on_desired(self, desired: Desired) -> None:
        """Take a signed manifest. A wrong one is refused with its reason; what runs goes on."""
        with self._lock:
            if self._stopped:
                return
            try:
                self._take(desired)
            except (HeadframeError, OSError) as error:  # what is on its way already goes on
                self._say(f"refused a manifest: {error}")
                return
        self.step()

    def on_layer(self, part: LayerPart) -> None:
        """Take a part of the layer that is being fetched; anything else is ignored (late or duplicate)."""
        self._hand_on(lambda download: download.take(part))

    def on_shelved(self, shelved: Shelved) -> None:
        """The layer that is being fetched is published for all who need it."""
        self._hand_on(lambda download: download.take_shelved(shelved))

    def on_piece(self, name: str, data: bytes) -> None:
        """Take a piece of what is published for all; one that is not needed is ignored."""
        self._hand_on(lambda download: download.take_piece(name, data))

    def pieces(self) -> frozenset[str]:
        """Pieces that are needed now, of what is published for all."""
        with self._lock:
            download = self._fetching()
            return download.pieces() if download else frozenset()

    def _fetching(self) -> Download | None:
        candidate = self._candidate
        fetching = not self._stopped and candidate is not None and candidate.phase is Phase.FETCHING
        return candidate.download if candidate and fetching else None

    def _hand_on(self, take: Callable[[Download], int]) -> None:
        """Something came for the download that is under way; a fault refuses the release."""
        with self._lock:
            candidate, download = self._candidate, self._fetching()
            if candidate is None or download is None:
                return
            try:
                self.bytes_down += take(download)
            except (HeadframeError, OSError) as error:
                self._refuse(candidate.name, error)
                return
        self.step()

    def step(self) -> None:
        """Go on as far as it goes now. Called at least each second."""
        with self._lock:
            if self._stopped:
                return
            now_s = self._clock.monotonic_s()
            if self._boot_again_s is not None and now_s >= self._boot_again_s:
                self._boot_delay_s = min(2 * self._boot_delay_s, BOOT_AGAIN_S[1])
                self.boot()
            try:
                self._watch_probation()
                while self._candidate and self._advance(self._candidate):
                    pass
            except (EnvironmentFault, OSError) as error:
                self._refuse(self._candidate.name if self._candidate else "a step", error)

    def stop(self) -> None:
        """The agent ends because it was told to: this start is not held against a release on trial. Nothing is
        installed any more."""
        with self._lock:
            self._stopped = True
            if self._owed:
                self._write_roll_back(self._owed)
            try:
                self._slots.end_in_order()
            except EnvironmentFault as error:
                log.error("%s", error)

    def health(self) -> tuple[ReleaseHealth, ...]:
        """Of the release that runs, of one that is on its way, of one that went back: at most three."""
        seen = self._stage.observe()
        model, candidate, found = self._model, self._candidate, []
        if model:
            phase = Phase.PROBATION if self._probation else Phase.COMMITTED
            pair = self._probation.shadow.plus(seen.pair) if self._probation else self._compared
            found.append(_health(model.release_id, phase, seen.of(model.release_id), pair, restarts=self._starts))
        if candidate:
            pair = seen.pair.turned() if candidate.phase is Phase.SHADOW else Pair()
            tally = seen.of(candidate.name) if candidate.phase is Phase.SHADOW else Tally()
            found.append(_health(candidate.name, candidate.phase, tally, pair))
        if self._gone:
            found.append(self._gone)
        return tuple(found)

    # Starting

    def _count_start(self) -> None:
        """Count this start on a release that is on trial; after too many of them, or when it had gone back already
        before the power was cut, go back."""
        slot = self._slots.read(CURRENT)
        if slot is None or not slot.on_trial:
            return
        manifest, now_ns = self._recall(slot), self._believed_ns(slot)
        name = release_id(manifest)
        known = next((gone for gone in self._slots.gone_back() if gone.release_id == name), None)
        self._starts = self._slots.count_start(now_ns, round(self._settings.crash_window_s * 1e9))
        if known is None and self._starts <= self._settings.crashes_max:
            return
        why = f"the agent started {self._starts - 1} times on it and each time came to an end before it was committed"
        if known is None:
            known = GoneBack(name, manifest.sequence, why, now_ns)
            self._slots.remember(known)
        self._slots.go_back()
        self._gone = _health(name, Phase.ROLLED_BACK, Tally(), Pair(), reason=known.reason, restarts=self._starts)
        self._starts = 0
        self._say(f"rolled back {name}: {known.reason}")

    def _boot_from(self, names: tuple[str, str]) -> Model | None:
        for name in names:
            slot = self._load_slot(name)
            if slot is None:
                continue
            self._drop_candidate()  # it was to be compared with another release
            old = None
            if slot.on_trial:
                committed = self._loaded(PREVIOUS)
                old = committed[1].model if committed else None
                before = Before(old.release_id if old else "")
                self._probation = _Probation(self._clock.monotonic_s(), before, old, Pair())
            self._stage.hand_over(self._model, old, on_trial=slot.on_trial)
            return self._model
        return None

    def _load_slot(self, name: str) -> Slot | None:
        """Make what a slot holds the running model."""
        loaded = self._loaded(name)
        if loaded is None:
            return None
        self._slot, self._model, self.variant = loaded[0], loaded[1].model, loaded[1].variant
        return self._slot

    def _loaded(self, name: str) -> tuple[Slot, Loaded] | None:
        try:
            slot = self._slots.read(name)
            if slot is None:
                return None
            return slot, self._loader.load(self._recall(slot), self._model)
        except (HeadframeError, OSError) as error:
            if _passes(error):
                self._boot_again_s = self._clock.monotonic_s() + self._boot_delay_s
            self._say(f"could not start from {self._folder / name}: {error}")
            return None

    # What is desired

    def _take(self, desired: Desired) -> None:
        """Begin with a release, unless it runs, or is on its way, already."""
        if self._slot and self._slot.manifest == desired.manifest:
            self._trust.check(desired, self._believed_ns(self._slot))  # new keys and times are learnt all the same
            if self._candidate:
                log.info("release %s is no longer wanted", self._candidate.name)
                self._drop_candidate()
            return
        manifest = self._trust.check(desired, self._believed_ns(self._slot))
        if self._candidate and self._candidate.manifest == manifest:
            return
        running = self._model.manifest if self._model else None
        gone_back = (*self._slots.gone_back(), *([self._owed] if self._owed else []))
        check_fit(manifest, self._site_id, running, gone_back)
        layers = manifest.layers_for(self._site_id)
        download = Download(layers, self._layers, self._clock, self._request, self._settings.bytes_per_s)
        check_room(manifest, download.bytes_needed, self._folder)
        self._drop_candidate()
        if not download.done:
            self._begin_fetch(release_id(manifest))
        self._candidate = _Candidate(desired, manifest, download, began_s=self._clock.monotonic_s())

    def _begin_fetch(self, name: str) -> None:
        """Mark it: what brings the agent down while it is fetched is left alone for a while. It may have been the
        power, so that is not for ever; and a box without a clock can count it too.

        Raises:
            EnvironmentFault: it has come to an end here too often, or the disk does not take the mark.
        """
        ended = self._slots.fetches(name)
        if ended >= self._settings.crashes_max:
            left_s = self._settings.crash_window_s - (self._clock.monotonic_s() - self._began_s)
            if left_s > 0:
                raise EnvironmentFault(
                    f"release {name} is not installed: the agent came to an end {ended} times while it was fetched",
                    f"It is tried again in {left_s / 60:.0f} minutes, or after `systemctl restart`.",
                )
            self._slots.end_fetch()
        self._slots.count_fetch(name)

    # A release on its way

    def _advance(self, candidate: _Candidate) -> bool:
        """One step; True when another may follow at once."""
        match candidate.phase:
            case Phase.FETCHING:
                if not candidate.download.done:
                    candidate.download.step()
                    return False
                if self._probation or self._owed:
                    return False  # one at a time, or there would be nothing proven to go back to
                return self._begin_test(candidate)
            case Phase.TESTING:
                return self._end_test(candidate)
            case _:
                return self._watch_shadow(candidate)

    def _begin_test(self, candidate: _Candidate) -> bool:
        """Mark the attempt, then load and try aside: what brings the agent down is known after its start."""
        window_ns = round(self._settings.crash_window_s * 1e9)
        self._slots.end_fetch()
        attempts = self._slots.count_attempt(candidate.name, self._believed_ns(self._slot), window_ns)
        if attempts > self._settings.crashes_max:
            self._go_back_before(candidate, f"the agent came to an end {attempts - 1} times while it was tried")
            return False
        candidate.phase, candidate.began_s = Phase.TESTING, self._clock.monotonic_s()
        self._aside(lambda: self._test(candidate))
        return True

    def _test(self, candidate: _Candidate) -> None:
        """Aside, without the lock: what it finds is put into the candidate."""
        try:
            candidate.loaded = self._loader.prove(candidate.manifest, self._model)
        except Exception as error:  # of a model, in any library below it; told by `_end_test`
            log.info("release %s does not pass its test", candidate.name, exc_info=True)
            candidate.fault = error
        self.step()

    def _end_test(self, candidate: _Candidate) -> bool:
        error, loaded = candidate.fault, candidate.loaded
        if error is not None:
            if _passes(error):
                self._refuse(candidate.name, error)
            else:
                self._go_back_before(candidate, str(error))
            return False
        if loaded is None:
            if self._clock.monotonic_s() - candidate.began_s > self._settings.test_s:
                self._go_back_before(candidate, f"it has not loaded within {self._settings.test_s:.0f} s")
            return False
        if self._model is None:
            self._swap(candidate, loaded, Before(""), Pair())
            return False
        candidate.phase, candidate.began_s = Phase.SHADOW, self._clock.monotonic_s()
        self._stage.hand_over(self._model, beside=loaded.model)
        return True

    def _watch_shadow(self, candidate: _Candidate) -> bool:
        loaded, running = candidate.loaded, self._model
        if loaded is None or running is None:
            raise RuntimeError("a release in shadow and one that runs are loaded")
        seen = self._stage.observe()
        judged = judge_shadow(seen, candidate.name, self._clock.monotonic_s() - candidate.began_s, self._settings)
        if judged.outcome is Outcome.BACK:
            self._go_back_before(candidate, judged.reason, seen)
        elif judged.outcome is Outcome.GO:
            old = seen.of(running.release_id)
            before = Before(running.release_id, old.median_ms, old.frames, seen.pair.shift, seen.pair.compared)
            self._swap(candidate, loaded, before, seen.pair.turned())
        return False

    def _swap(self, candidate: _Candidate, loaded: Loaded, before: Before, shadow: Pair) -> None:
        """First on disk, on trial, then between two frames. Nothing changes when the disk does not take it."""
        old, now_ns = self._model, self._believed_ns(self._slot)
        slot = Slot(candidate.desired.manifest, candidate.desired.signature, now_ns)
        self._slots.install(slot, self._slot)
        self._candidate, self._model, self._slot, self.variant = None, loaded.model, slot, loaded.variant
        self._starts, self._gone, self._boot_again_s = 0, None, None
        self._probation = _Probation(self._clock.monotonic_s(), before, old, shadow)
        self.outcome = f"installed {candidate.name}, on probation"
        log.info("%s", self.outcome)
        self._stage.hand_over(loaded.model, beside=old, on_trial=True)

    # Probation

    def _watch_probation(self) -> None:
        probation, model = self._probation, self._model
        if self._owed:
            self._write_roll_back(self._owed)
        if probation is None or model is None:
            return
        seen = self._stage.observe()
        waited_s = self._clock.monotonic_s() - probation.began_s
        judged = judge_probation(seen, model.release_id, probation.before, waited_s, self._settings)
        if judged.outcome is Outcome.BACK:
            self._roll_back(probation, model, judged.reason, seen)
        elif judged.outcome is Outcome.GO:
            self._commit(model, probation.shadow.plus(seen.pair))

    def _commit(self, model: Model, compared: Pair) -> None:
        try:
            self._slots.commit()
        except EnvironmentFault as error:  # it stays on probation until the disk takes it
            log.error("release %s cannot be committed yet: %s", model.release_id, error)
            return
        self._probation = None
        self._starts, self._compared = 0, compared
        self._stage.hand_over(model)
        self.outcome = f"committed {model.release_id}"
        log.info("%s", self.outcome)
        self._sweep(model.manifest)

    def _roll_back(self, probation: _Probation, model: Model, reason: str, seen: Observation) -> None:
        """At once in memory, whatever the disk does; then on disk, again and again until it takes it."""
        self._stage.hand_over(probation.old, rescue=seen.stuck_s > self._settings.hang_s)
        tally, compared = seen.of(model.release_id), probation.shadow.plus(seen.pair)
        self._gone = _health(model.release_id, Phase.ROLLED_BACK, tally, compared, reason, self._starts)
        self._say(f"rolled back {model.release_id}: {reason}")
        at_ns = self._believed_ns(self._slot)
        self._owed = GoneBack(model.release_id, model.manifest.sequence, reason, at_ns)
        self._model, self._probation, self._starts, self._compared = probation.old, None, 0, Pair()
        self._slot = None
        self._write_roll_back(self._owed)
        if self._model is None:  # there is nothing to go back to, or it could not be loaded when the agent started
            self._boot_again_s = self._clock.monotonic_s()

    def _write_roll_back(self, gone: GoneBack) -> None:
        try:
            self._slots.remember(gone)
            self._slots.go_back()
            self._slot = self._slots.read(CURRENT)
        except EnvironmentFault as error:
            log.error("the roll-back of %s is not on disk yet: %s", gone.release_id, error)
            return
        self._owed = None

    def _sweep(self, manifest: Manifest) -> None:
        """Remove layers that neither this nor the previous release needs; what cannot be removed is left."""
        try:
            previous = self._slots.read(PREVIOUS)
            kept = [manifest, *([self._recall(previous)] if previous else [])]
            if self._candidate:
                kept.append(self._candidate.manifest)
            hashes = {layer.hash for item in kept for layer in item.layers_for(self._site_id)}
            self._layers.sweep(hashes)
        except (HeadframeError, OSError) as error:
            log.warning("old layers are left on the disk: %s", error)

    # Parts of the above

    def _go_back_before(self, candidate: _Candidate, reason: str, seen: Observation | None = None) -> None:
        """A release that has not run yet is left, and remembered: it will do no better the next time."""
        self._drop_candidate()
        seen = seen or Observation()
        self._gone = _health(
            candidate.name,
            Phase.ROLLED_BACK,
            seen.of(candidate.name),
            seen.pair.turned(),
            reason,
        )
        self._say(f"refused {candidate.name}: {reason}")
        at_ns = self._believed_ns(self._slot)
        try:
            self._slots.remember(GoneBack(candidate.name, candidate.manifest.sequence, reason, at_ns))
        except EnvironmentFault as error:
            log.error("that is not on disk, so it will be tried once more: %s", error)

    def _drop_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is None:
            return
        if candidate.phase is Phase.SHADOW:
            self._stage.hand_over(self._model)
        try:
            if candidate.phase is Phase.FETCHING:
                self._slots.end_fetch()
            else:
                self._slots.end_attempt()
        except EnvironmentFault as error:
            log.warning("%s", error)

    def _refuse(self, what: str, error: Exception) -> None:
        """Not now; it is tried again when the centre desires it again."""
        self._drop_candidate()
        self._say(f"refused {what}: {error}")

    def _say(self, what_went_wrong: str) -> None:
        self.outcome = what_went_wrong
        log.error("%s", what_went_wrong)

    def _believed_ns(self, slot: Slot | None) -> int:
        """The latest time there is reason to believe."""
        return max(self._clock.wall_ns(), BUILT_AT_NS, slot.seen_at_ns if slot else 0)

    def _recall(self, slot: Slot) -> Manifest:
        return self._trust.recall(Desired(manifest=slot.manifest, signature=slot.signature))


def _health(name: str, phase: Phase, tally: Tally, pair: Pair, reason: str = "", restarts: int = 0) -> ReleaseHealth:
    """What is told of a release.

    Args:
        pair: it runs, and the one before looks beside it.
    """
    return ReleaseHealth(
        release_id=name,
        phase=phase.value,
        reason=reason,
        frames=tally.frames,
        errors=tally.errors,
        restarts=restarts,
        flagged=tally.flagged,
        score_sum=tally.score_sum,
        score_squares=tally.score_squares,
        latency_ms=tally.median_ms,
        unseen=round(tally.unseen, 1),
        compared=pair.compared,
        disagreed=pair.disagreed,
        moved=dict(sorted(pair.moves_beside.items(), key=lambda item: -item[1][0])[:MOVED_MAX]),
    )


def _passes(error: BaseException) -> bool:
    """Whether the same may well work later: the disk's fault, not the release's."""
    cause = error.__cause__ or error
    return isinstance(error, EnvironmentFault) or (
        isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    )

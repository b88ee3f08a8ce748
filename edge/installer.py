"""Releases on the gateway: from the one that runs to the one the centre wants, and back by itself when it hurts.

    fetching → testing → shadow → probation → committed
                  └────────┴─────────┴──────→ rolled-back

Decides which release runs here. Leaves who may sign to `edge.trust`, the layers' bytes to `edge.download`, what is on
disk to `edge.slots`, the rules of shadow and probation to `edge.trial`, and the looking (and the swap, between two
frames) to the `Stage`. What runs goes on through all of it; a power cut at any instant leaves the old or the new
release. Loading and self-test run aside, in a thread of their own, so that neither link nor heartbeat waits for them.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from common import AGENT_VERSION
from common.backbone import Opener, open_session
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError, OperatorError, TrustError, WireError
from common.files import disk_fault
from common.ids import layer_hash
from common.manifest import Layer, Manifest, Variant, release_id
from common.messages import Desired, LayerPart, ReleaseHealth
from edge.download import Download, LayerFolder, Request
from edge.perception import Model, load_model
from edge.selftest import check_pace, read_golden, self_test
from edge.settings import InstallSettings
from edge.slots import CURRENT, PREVIOUS, GoneBack, Slot, Slots
from edge.tally import Observation, Pair, Tally
from edge.trial import Before, Outcome, judge_probation, judge_shadow
from edge.trust import Trust
from edge.variants import VariantChoice, choose_variant

log = logging.getLogger(__name__)

LAYERS: Final = "layers"
"""Folder of the layers within the installer's own."""
LAYER_BYTES_MAX: Final = 2 * 1024**3
BUILT_AT_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01: no clock of a working box is earlier
SPARE_BYTES: Final = 16 * 1024**2
"""Left free on the disk by an install: the spool and the logs go on."""
BOOT_AGAIN_S: Final = 1.0
"""A slot that could not be read at the start is tried again after so long."""


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
    model: Model | None = None
    variant: VariantChoice = field(default_factory=lambda: VariantChoice("", ""))
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


class Installer:
    """Brings the gateway from the release it runs to the one the centre wants.

    Args:
        folder: holds `layers/<hash>` and the files of `edge.slots`.
        trust: says which manifests may be installed.
        request: publishes a Fetch; False when the link is down (asked again later).
        stage: where models look.
        settings: how a release proves itself.
        opener: opens backbones and detectors on what this box runs best.
        precision: which variant of a backbone to run: `auto`, or one by name.
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
        self._opener, self._precision, self._aside = opener, precision, aside
        self._settings = settings or InstallSettings()
        self.variant = VariantChoice("", "no release yet")
        """Which variant of the backbone runs, and why."""
        self._measured: tuple[tuple[Layer, tuple[Variant, ...]], VariantChoice] | None = None
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
        self._starts = 0
        self._boot_again_s: float | None = None
        self._gone: ReleaseHealth | None = None
        """The release that went back last, as it was then."""
        self.outcome = ""
        """The last install in words, reported to the centre."""
        self.bytes_down = 0
        self._folder = folder
        self._layers = LayerFolder(folder / LAYERS)
        self._slots = Slots(folder)

    def layer_path(self, name: str) -> Path:
        """Where a layer of this hash is, or will be."""
        return self._layers.path(name)

    def boot(self) -> Model | None:
        """Run the release that ran last, or the one before it when that one no longer loads or brings the agent down
        again and again; None on a new box. What cannot be read now is tried again by `step`."""
        with self._lock:
            self._boot_again_s = None
            try:
                self._start_counted()
            except (EnvironmentFault, OSError) as error:
                log.error("the start could not be counted, the release before is run: %s", error)
                return self._boot_from((PREVIOUS, CURRENT))
            return self._boot_from((CURRENT, PREVIOUS))

    def on_desired(self, desired: Desired) -> None:
        """Take a signed manifest. A wrong one is refused with its reason; what runs goes on."""
        with self._lock:
            try:
                self._take(desired)
            except (HeadframeError, OSError) as error:  # what is on its way already goes on
                self._say(f"refused a manifest: {error}")
                return
        self.step()

    def on_layer(self, part: LayerPart) -> None:
        """Take a part of the layer that is being fetched; anything else is ignored (late or duplicate)."""
        with self._lock:
            candidate = self._candidate
            if candidate is None or candidate.phase is not Phase.FETCHING:
                return
            try:
                self.bytes_down += candidate.download.take(part)
            except (HeadframeError, OSError) as error:
                self._refuse(candidate.name, error)
                return
        self.step()

    def step(self) -> None:
        """Go on as far as it goes now. Called at least each second."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._boot_again_s is not None and now_s >= self._boot_again_s:
                self.boot()
            try:
                self._watch_probation()
                while self._candidate and self._advance(self._candidate):
                    pass
            except (EnvironmentFault, OSError) as error:
                self._refuse(self._candidate.name if self._candidate else "a step", error)

    def stop(self) -> None:
        """The agent ends because it was told to: this start is not held against a release on trial."""
        with self._lock:
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
            pair = seen.pair if self._probation else None
            found.append(_health(model.release_id, phase, seen.of(model.release_id), pair, restarts=self._starts))
        if candidate:
            pair = seen.pair if candidate.phase is Phase.SHADOW else None
            tally = seen.of(candidate.name) if candidate.phase is Phase.SHADOW else Tally()
            found.append(_health(candidate.name, candidate.phase, tally, pair))
        if self._gone:
            found.append(self._gone)
        return tuple(found)

    # Starting

    def _start_counted(self) -> None:
        """Count this start on a release that is on trial; after too many of them go back."""
        window_ns = round(self._settings.crash_window_s * 1e9)
        slot = self._slots.read(CURRENT)
        self._starts = self._slots.count_start(self._believed_ns(slot), window_ns)
        if slot is None or self._starts <= self._settings.crashes_max:
            return
        manifest = self._recall(slot)
        why = f"the agent started {self._starts - 1} times on it and each time came to an end before it was committed"
        self._slots.remember(GoneBack(release_id(manifest), manifest.sequence, why, self._believed_ns(slot)))
        self._slots.go_back()
        self._starts = 0
        self._gone = _health(release_id(manifest), Phase.ROLLED_BACK, Tally(), None, reason=why)
        self._say(f"rolled back {release_id(manifest)}: {why}")

    def _boot_from(self, names: tuple[str, str]) -> Model | None:
        for name in names:
            slot = self._load_slot(name)
            if slot is None:
                continue
            old = None
            if slot.on_trial:
                committed = self._loaded(PREVIOUS)
                old = committed[1] if committed else None
                before = Before(old.release_id if old else "")
                self._probation = _Probation(self._clock.monotonic_s(), before, old)
            self._stage.hand_over(self._model, old, on_trial=slot.on_trial)
            return self._model
        return None

    def _load_slot(self, name: str) -> Slot | None:
        """Make what a slot holds the running model."""
        loaded = self._loaded(name)
        if loaded is None:
            return None
        self._slot, self._model, self.variant = loaded
        return self._slot

    def _loaded(self, name: str) -> tuple[Slot, Model, VariantChoice] | None:
        try:
            slot = self._slots.read(name)
            if slot is None:
                return None
            manifest = self._recall(slot)
            choice = self._choose(manifest)
            return slot, self._load(manifest, choice), choice
        except (HeadframeError, OSError) as error:
            if _passes(error):
                self._boot_again_s = self._clock.monotonic_s() + BOOT_AGAIN_S
            self._say(f"could not start from {self._folder / name}: {error}")
            return None

    # What is desired

    def _take(self, desired: Desired) -> None:
        """Begin with a release, unless it runs, or is on its way, already."""
        if self._slot and self._slot.manifest == desired.manifest:
            self._trust.recall(desired)
            if self._candidate:
                log.info("release %s is no longer wanted", self._candidate.name)
                self._drop_candidate()
            return
        manifest = self._trust.check(desired, self._believed_ns(self._slot))
        if self._candidate and self._candidate.manifest == manifest:
            return
        self._check_fit(manifest)
        layers = manifest.layers_for(self._site_id)
        download = Download(layers, self._layers, self._clock, self._request)
        self._check_room(manifest, download.bytes_needed)
        self._drop_candidate()
        self._candidate = _Candidate(desired, manifest, download, began_s=self._clock.monotonic_s())

    def _check_fit(self, manifest: Manifest) -> None:
        name = release_id(manifest)
        running = self._model.manifest if self._model else None
        if running and manifest.sequence <= running.sequence:
            raise TrustError(
                f"release {name} is older than the running {release_id(running)}",
                "A roll-back is published as a new release with the old layers.",
            )
        for gone in self._slots.gone_back():
            if manifest.sequence <= gone.sequence:
                raise OperatorError(
                    f"release {name} is not installed, {gone.release_id} was rolled back here: {gone.reason}",
                    "Publish a release with a higher sequence number.",
                )
        if _version(manifest.minimum_agent) > _version(AGENT_VERSION):
            raise OperatorError(
                f"release {name} needs agent {manifest.minimum_agent}, this is {AGENT_VERSION}",
                "Update the agent on this gateway.",
            )
        oversize = [layer for layer in manifest.layers_for(self._site_id) if layer.size_bytes > LAYER_BYTES_MAX]
        if oversize:
            raise WireError(f"layer {oversize[0].hash[:12]} of {oversize[0].size_bytes} bytes is over the bound")

    def _check_room(self, manifest: Manifest, needed_bytes: int) -> None:
        """Before the first byte is fetched: a download that fills the disk would stop more than itself."""
        free_bytes = shutil.disk_usage(self._folder).free
        if needed_bytes and needed_bytes + SPARE_BYTES > free_bytes:
            raise EnvironmentFault(
                f"release {release_id(manifest)} needs {_mb(needed_bytes + SPARE_BYTES)} on the disk that holds"
                f" {self._folder}, {_mb(free_bytes)} are free",
                "Free space or move data_dir to a larger disk.",
            )

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
            self._verify_layers(candidate.manifest)
            golden = candidate.manifest.golden
            expected = read_golden(self.layer_path(golden.hash)) if golden else None
            choice = self._choose(candidate.manifest)
            model = self._load(candidate.manifest, choice)
            try:
                self_test(model, expected, self._site_id, self._settings.tolerance)
            except OperatorError as error:
                if not choice.hash:
                    raise
                log.warning("the variant is not used: %s", error)
                choice = VariantChoice("", f"its variant fails the self-test: {error.message}")
                model = self._load(candidate.manifest, choice)
                self_test(model, expected, self._site_id, self._settings.tolerance)
            if self._model:
                check_pace(model, self._model, self._settings.latency_ratio)
            candidate.variant, candidate.model = choice, model
        except Exception as error:  # of a model, in any library below it; told by `_end_test`
            log.info("release %s does not pass its test", candidate.name, exc_info=True)
            candidate.fault = error
        self.step()

    def _verify_layers(self, manifest: Manifest) -> None:
        """The bytes on disk, once more before anything opens them: they may be older than this start."""
        for layer in manifest.layers_for(self._site_id):
            path = self.layer_path(layer.hash)
            try:
                right = layer_hash(path.read_bytes()) == layer.hash
                if not right:
                    path.unlink()
            except OSError as error:
                raise disk_fault(path, error) from error
            if not right:
                raise EnvironmentFault(
                    f"{path} does not match its hash", "It is fetched again when the release is desired again."
                )

    def _end_test(self, candidate: _Candidate) -> bool:
        error, model = candidate.fault, candidate.model
        if error is not None:
            if _passes(error):
                self._refuse(candidate.name, error)
            else:
                self._go_back_before(candidate, str(error))
            return False
        if model is None:
            if self._clock.monotonic_s() - candidate.began_s > self._settings.test_s:
                self._go_back_before(candidate, f"it has not loaded within {self._settings.test_s:.0f} s")
            return False
        if self._model is None:
            self._swap(candidate, model, Before(""))
            return False
        candidate.phase, candidate.began_s = Phase.SHADOW, self._clock.monotonic_s()
        self._stage.hand_over(self._model, beside=model)
        return True

    def _watch_shadow(self, candidate: _Candidate) -> bool:
        model, running = candidate.model, self._model
        if model is None or running is None:
            raise RuntimeError("a release in shadow and one that runs are loaded")
        seen = self._stage.observe()
        judged = judge_shadow(seen, candidate.name, self._clock.monotonic_s() - candidate.began_s, self._settings)
        if judged.outcome is Outcome.BACK:
            self._go_back_before(candidate, judged.reason, seen)
        elif judged.outcome is Outcome.GO:
            old = seen.of(running.release_id)
            before = Before(running.release_id, old.median_ms, old.frames, seen.pair.shift, seen.pair.compared)
            self._swap(candidate, model, before)
        return False

    def _swap(self, candidate: _Candidate, model: Model, before: Before) -> None:
        """First on disk, on trial, then between two frames. Nothing changes when the disk does not take it."""
        old, now_ns = self._model, self._believed_ns(self._slot)
        slot = Slot(candidate.desired.manifest, candidate.desired.signature, now_ns)
        self._slots.install(slot, self._slot)
        self._candidate, self._model, self._slot, self.variant = None, model, slot, candidate.variant
        self._starts, self._gone = 0, None
        self._probation = _Probation(self._clock.monotonic_s(), before, old)
        self.outcome = f"installed {candidate.name}, on probation"
        log.info("%s", self.outcome)
        self._stage.hand_over(model, beside=old, on_trial=True)

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
            self._commit(model)

    def _commit(self, model: Model) -> None:
        try:
            self._slots.commit()
        except EnvironmentFault as error:  # it stays on probation until the disk takes it
            log.error("release %s cannot be committed yet: %s", model.release_id, error)
            return
        self._probation = None
        self._starts = 0
        self._stage.hand_over(model)
        self.outcome = f"committed {model.release_id}"
        log.info("%s", self.outcome)
        self._sweep(model.manifest)

    def _roll_back(self, probation: _Probation, model: Model, reason: str, seen: Observation) -> None:
        """At once in memory, whatever the disk does; then on disk, again and again until it takes it."""
        self._stage.hand_over(probation.old, rescue=seen.stuck_s > self._settings.hang_s)
        tally = seen.of(model.release_id)
        self._gone = _health(
            model.release_id, Phase.ROLLED_BACK, tally, seen.pair, reason=reason, restarts=self._starts
        )
        self._say(f"rolled back {model.release_id}: {reason}")
        at_ns = self._believed_ns(self._slot)
        self._owed = GoneBack(model.release_id, model.manifest.sequence, reason, at_ns)
        self._model, self._probation, self._starts = probation.old, None, 0
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
            seen.pair if seen.pair.compared else None,
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
        if candidate is None or candidate.phase is Phase.FETCHING:
            return
        if candidate.phase is Phase.SHADOW:
            self._stage.hand_over(self._model)
        try:
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

    def _choose(self, manifest: Manifest) -> VariantChoice:
        among = manifest.backbone, manifest.variants
        if self._measured is None or self._measured[0] != among:  # a head-only release has the same: measured once
            choice = choose_variant(manifest, self.layer_path, self._opener, self._precision)
            self._measured = among, choice
        return self._measured[1]

    def _load(self, manifest: Manifest, choice: VariantChoice) -> Model:
        return load_model(
            release_id(manifest),
            manifest,
            self.layer_path,
            self._site_id,
            self._model.backbone if self._model else None,
            opener=self._opener,
            variant=choice.hash,
        )

    def _believed_ns(self, slot: Slot | None) -> int:
        """The latest time there is reason to believe."""
        return max(self._clock.wall_ns(), BUILT_AT_NS, slot.seen_at_ns if slot else 0)

    def _recall(self, slot: Slot) -> Manifest:
        return self._trust.recall(Desired(manifest=slot.manifest, signature=slot.signature))


def _health(
    name: str, phase: Phase, tally: Tally, pair: Pair | None, reason: str = "", restarts: int = 0
) -> ReleaseHealth:
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
        compared=pair.compared if pair else 0,
        disagreed=pair.disagreed if pair else 0,
    )


def _passes(error: BaseException) -> bool:
    """Whether the same may well work later: the disk's fault, not the release's."""
    return isinstance(error, EnvironmentFault | OSError) or isinstance(error.__cause__, OSError)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _version(text: str) -> tuple[int, ...]:
    """`1.2.10` as a tuple; a part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))

"""100,000 spoiled messages into the centre and as many into a gateway: no crash, bounded memory, a reason for each.

The centre: `Service` with its real store, from the topic to the commit. The gateway: what the agent does with a message
from the centre, down to an installer that is fetching a release; manifests are spoiled before *and* after they are
signed (a thief without the key, and a centre that signs nonsense). Deltas, which seldom get so far there, are spoiled
by themselves, inside too. What was still right is counted as taken.
"""

import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from rich.console import Console
from rich.progress import Progress

from cloud.service import Service
from cloud.settings import CloudSettings
from common import codec, topics
from common.chunks import split
from common.clock import SystemClock
from common.delta import apply_delta, make_delta
from common.errors import HeadframeError
from common.ids import layer_hash
from common.manifest import decode_manifest, encode_manifest
from common.messages import Desired, Fetch, LayerPart, Message, Shelved
from common.mqtt import Broker
from common.parcels import cut, pack
from common.weights import find_tensors, find_weights
from edge.downward import Downward
from edge.installer import Installer
from edge.perception import Model
from edge.settings import InstallSettings
from edge.tally import Observation
from simulations.bench._messages import DOWN, UP, made_sample
from simulations.bench._mutations import mutate
from simulations.bench._process import Peak
from simulations.bench._tiny import tiny_backbone, tiny_head, tiny_manifest, tiny_variant
from simulations.single_key import Signer, SingleKey

GATEWAY = "north-1"
FULL, QUICK = 100_000, 4_000
STEPS, RATIOS = {"scale": -44}, {"scale": -12}  # the scale of `tiny_variant` grows by an eighth
PIECES, LITERAL = 2, 3  # places in a delta; the literal needs the base to be unpacked
PARTS = 16  # layers are fetched in so many parts, so that a spoiled one comes in the middle


def bench_fuzz(*, quick: bool) -> dict[str, Any]:
    """Both sides, from one seed."""
    count = QUICK if quick else FULL
    sides = {
        "centre": fuzz_centre(count, seed=1),
        "gateway": fuzz_gateway(count, seed=2),
        "deltas": fuzz_deltas(count, seed=3),
    }
    return {
        "messages": len(sides) * count,
        "crashes": sum(side["crashes"] for side in sides.values()),
        "unexplained": sum(side["unexplained"] for side in sides.values()),
        **sides,
    }


def fuzz_centre(count: int, seed: int) -> dict[str, Any]:
    """Spoiled messages of every kind, on every kind of topic, between valid ones."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="headframe-fuzz-") as folder, _quiet():
        tally = _Tally()
        service = _Centre(Path(folder), tally)
        service.ingest.start()
        try:
            with Peak() as peak:
                for number in _progress("centre", count):
                    topic, payload = _upward(rng, number)
                    service.take(topic, payload)
                valid = made_sample(count + 1)
                service.take(topics.up(GATEWAY, "sample"), codec.encode(valid))
                deadline = time.monotonic() + 30
                while service.store.sample(valid.sample_id) is None and time.monotonic() < deadline:
                    time.sleep(0.05)
            service.store.states()  # what is kept can be read
            alive = service.ingest.alive and service.store.sample(valid.sample_id) is not None
        finally:
            service.ingest.stop(30)
            service.store.close()
    return tally.figures() | {"extra_mb": round(peak.extra_bytes / 2**20, 1), "works_after": alive}


def fuzz_gateway(count: int, seed: int) -> dict[str, Any]:
    """Spoiled messages from the centre while a release is being fetched, again and again."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="headframe-fuzz-") as folder, _quiet():
        tally = _Tally()
        site = _Gateway(Path(folder), tally)
        with Peak() as peak:
            for number in _progress("gateway", count):
                site.take(site.next_payload(rng, number))
        works = site.installs()
    return tally.figures() | {"extra_mb": round(peak.extra_bytes / 2**20, 1), "works_after": works}


def fuzz_deltas(count: int, seed: int) -> dict[str, Any]:
    """Spoiled deltas with tensors of every kind: each is refused, or makes as many bytes as it should."""
    rng = random.Random(seed)
    backbone, tally = tiny_backbone(), _Tally()
    base, target = (tiny_variant(backbone, number) for number in range(2))
    places = find_tensors(base), find_tensors(target)
    deltas = [
        make_delta(base, target, *places, steps, ratios) for steps, ratios in (({}, {}), (STEPS, {}), ({}, RATIOS))
    ]

    def act(delta: bytes) -> str | None:
        try:
            made = apply_delta(base, delta, len(target))
        except HeadframeError as error:
            return str(error)
        if len(made) != len(target):
            raise AssertionError(f"{len(made)} bytes")
        return None if made == target else "its hash is another one"

    with Peak() as peak:
        for _ in _progress("deltas", count):
            delta = rng.choice(deltas)
            spoiled = _spoil_inside(delta, rng) if rng.random() < 0.5 else mutate(delta, rng)
            tally.note(partial(act, spoiled))
    works = all(apply_delta(base, delta, len(target)) == target for delta in deltas)
    return tally.figures() | {"extra_mb": round(peak.extra_bytes / 2**20, 1), "works_after": works}


def _spoil_inside(delta: bytes, rng: random.Random) -> bytes:
    """One stream of a delta is spoiled and packed again, under its true size or the one before."""
    parts = msgspec.msgpack.decode(delta)
    place = rng.randrange(PIECES, len(parts))
    size, packed = parts[place]
    data = zstandard.decompress(packed) if place != LITERAL else rng.randbytes(size)
    if place == PIECES:
        data = mutate(data, rng)
    elif rng.random() < 0.5:
        data = rng.randbytes(size)
    else:
        data = data[: rng.randrange(size + 1)] + rng.randbytes(rng.randrange(3))
    parts[place] = [rng.choice((len(data), size)), zstandard.compress(data)]
    return msgspec.msgpack.encode(parts)


class _Tally:
    """What came of each message."""

    def __init__(self) -> None:
        self.taken = self.refused = self.crashes = self.unexplained = 0
        self.reasons: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def note(self, act: Callable[[], str | None]) -> None:
        """`act` returns the reason of a refusal, or None when the message was taken."""
        try:
            reason = act()
        except Exception as error:  # noqa: BLE001  whatever comes through here would have been a crash
            self.crashes += 1
            self.failures[_shape(f"{type(error).__name__}: {error}")] += 1
            return
        if reason is None:
            self.taken += 1
            return
        self.refused += 1
        self.unexplained += not reason.strip()
        self.reasons[_shape(reason)] += 1

    def figures(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "refused": self.refused,
            "crashes": self.crashes,
            "unexplained": self.unexplained,
            "reasons": len(self.reasons),
            "most_common": [reason for reason, _ in self.reasons.most_common(8)],
            "failures": dict(self.failures.most_common(20)),
        }


class _Centre(Service):
    """The real one, without its link: what it would send is dropped."""

    def __init__(self, folder: Path, tally: _Tally) -> None:
        settings = CloudSettings.model_validate({"data_dir": folder, "broker": {"embedded": False}})
        super().__init__(settings, Broker())
        self._tally, self._reason = tally, ""
        refused = self.guard.refused

        def remember(gateway_id: str, error: HeadframeError) -> None:
            self._reason = str(error)
            refused(gateway_id, error)

        self.guard.refused = remember  # type: ignore[method-assign]

    def take(self, topic: str, payload: bytes) -> None:
        """One message, as the link would hand it over."""

        def act() -> str | None:
            self._reason = ""
            self._on_message(topic, payload)
            self.reported.flush()
            return self._reason or None

        self._tally.note(act)


class _Stage:
    """Looks at nothing: a box whose cameras are silent, so that shadow and probation end by time."""

    def __init__(self) -> None:
        self.models = 0
        self._runs: Model | None = None

    def hand_over(self, model: Model | None, beside: Model | None = None, **_: bool) -> None:
        del beside  # no cameras: nothing is compared
        self.models += model is not None and model is not self._runs
        self._runs = model

    def observe(self) -> Observation:
        return Observation(running=self._runs.release_id if self._runs else "")


class _Gateway:
    """An installer that fetches a release over and over, and what the agent does around it."""

    def __init__(self, folder: Path, tally: _Tally) -> None:
        self._tally = tally
        self._signer = Signer.open(folder / "release.key")
        self._backbone = tiny_backbone()
        self._sequence = 0
        self._heads: dict[str, bytes] = {}
        self._asked: list[Fetch] = []
        self._pieces: dict[str, bytes] = {}
        self._stage = _Stage()
        self.installer = Installer(
            folder / "releases",
            SingleKey(self._signer.public_hex),
            "north",
            SystemClock(),
            self._ask,
            self._stage,
            InstallSettings(shadow_s=0.0, probation_s=0.0),
            aside=lambda work: work(),
        )
        self.downward = Downward(
            on_desired=self.installer.on_desired,
            on_layer=self.installer.on_layer,
            on_shelved=self.installer.on_shelved,
            on_piece=self.installer.on_piece,
        )
        self._release()

    def next_payload(self, rng: random.Random, number: int) -> bytes:
        """What the centre says next, mostly spoiled."""
        if number % 40 == 0:
            return codec.encode(self._release())
        if number % 5 == 0 and self._asked:
            shelved = self._shelve(self._asked[0], rng)
            return shelved if rng.random() < 0.5 else mutate(shelved, rng)
        if number % 3 == 0 and self._asked:
            part = codec.encode(self._answer(self._asked.pop(0)))
            return part if rng.random() < 0.5 else mutate(part, rng)
        if number % 3 == 1:
            return codec.encode(self._signed_nonsense(rng))
        kinds: list[Message] = [self._desired(self._manifest()), *(make(number) for make in DOWN.values())]
        return mutate(codec.encode(rng.choice(kinds)), rng)

    def take(self, payload: bytes) -> None:
        """As the agent does; pieces that it listens to come too, some of them spoiled."""

        def act() -> str | None:
            self.installer.outcome = ""
            reason = self.downward.take(topics.down(GATEWAY, "desired"), payload)
            for name in sorted(self.installer.pieces() & self._pieces.keys()):
                self.downward.take(topics.release(name), self._pieces[name])
            return reason or (self.installer.outcome if "refused" in self.installer.outcome else None)

        self._tally.note(act)

    def installs(self) -> bool:
        """Whether a right release is still installed after all that."""
        self._asked.clear()
        before = self._stage.models  # when its layers are here, it is installed within the next line
        self.downward.take(topics.down(GATEWAY, "desired"), codec.encode(self._release()))
        for _ in range(200):
            if self._stage.models > before:
                return True
            if self._asked:
                answer = codec.encode(self._answer(self._asked.pop(0)))
                self.downward.take(topics.down(GATEWAY, "layer"), answer)
            else:
                self.installer.step()
        return False

    def _ask(self, fetch: Fetch) -> bool:
        self._asked = [fetch]
        return True

    def _release(self) -> Desired:
        self._sequence += 1
        return self._desired(self._manifest())

    def _manifest(self) -> bytes:
        head = self._heads.setdefault(str(self._sequence % 3), tiny_head(self._backbone, self._sequence % 3))
        return encode_manifest(tiny_manifest(self._sequence, self._backbone, head, time.time_ns()))

    def _desired(self, manifest: bytes) -> Desired:
        return Desired(manifest=manifest, signature=self._signer.sign(manifest))

    def _signed_nonsense(self, rng: random.Random) -> Desired:
        """A spoiled manifest with a right signature."""
        spoiled = mutate(self._manifest(), rng)
        try:  # a number that no release can follow would end the test, not the gateway
            manifest = msgspec.structs.replace(decode_manifest(spoiled), sequence=self._sequence)
            spoiled = encode_manifest(manifest)
        except (HeadframeError, OverflowError):
            pass
        return self._desired(spoiled)

    def _shelve(self, fetch: Fetch, rng: random.Random) -> bytes:
        """Where a layer is published for all, and what lies there."""
        files = {layer_hash(data): data for data in (self._backbone, *self._heads.values())}
        data = files.get(fetch.layer, b"nothing of ours")
        packed = pack(cut(data))
        self._pieces = dict(zip(packed.names, cut(data), strict=True))
        if rng.random() < 0.5:
            self._pieces = {name: mutate(piece, rng) for name, piece in self._pieces.items()}
        return codec.encode(Shelved(layer=fetch.layer, parcel=packed.parcel))

    def _answer(self, fetch: Fetch) -> LayerPart:
        files = {layer_hash(data): data for data in (self._backbone, *self._heads.values())}
        data, base = files.get(fetch.layer, b""), ""
        held = next((name for name in fetch.bases if name in files and name != fetch.layer), "")
        if held and data:
            try:
                data = make_delta(files[held], data, find_weights(files[held]), find_weights(data))
                base = held
            except HeadframeError:
                base = ""
        length = max(1, len(data) // PARTS)
        part = data[fetch.offset : fetch.offset + length] if fetch.offset >= 0 else b""
        return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=len(data), data=part, base=base)


def _upward(rng: random.Random, number: int) -> tuple[str, bytes]:
    """A topic and a message, nearly always spoiled."""
    kind = rng.choice(("sample", "sample", "sample", "chunk", "chunk", *UP))
    if kind == "chunk":
        chunks = list(split(codec.encode(made_sample(number % 50)), 900))
        payload = codec.encode(rng.choice(chunks))
        if rng.random() < 0.2:
            payload = codec.encode(
                msgspec.structs.replace(chunks[0], index=0, count=1, total_bytes=len(chunks[0].data))
            )
    else:
        payload = codec.encode(UP[kind](number % 500))
    if rng.random() < 0.97:
        payload = mutate(payload, rng)
    topic = topics.up(GATEWAY, kind if rng.random() < 0.95 else rng.choice(topics.UP_KINDS))
    if rng.random() < 0.02:
        topic = rng.choice((topic + "/x", topic.replace("up", "down"), topic.replace(GATEWAY, "A" * 300), "", "#"))
    return topic, payload


def _shape(reason: str) -> str:
    """A reason without what is particular about it."""
    return "".join("9" if sign.isdigit() else sign for sign in reason)[:60]


@contextmanager
def _quiet() -> Iterator[None]:
    """A hundred thousand refusals are not read by anybody."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _progress(what: str, count: int) -> Iterator[int]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=count)
        for number in range(count):
            if number % 200 == 0:
                progress.update(task, completed=number)
            yield number

"""What the centre wants here, of a small message and a proof that is the same for all."""

import random
from pathlib import Path

import msgspec
import pytest
import zstandard

from common import codec
from common.ids import layer_hash
from common.messages import Desired, Fetch, LayerPart, Parcel, Receipt, Shelved
from common.parcels import cut, pack
from edge.intake import ANSWERS_MAX, SILENCE_S, SILENCE_S_MAX
from edge.proofs import BACK_S, PROOF_BYTES_MAX, Proofs
from edge.shared import Shared
from simulations.bench._yard import Centre, Gateway, HandClock

WHOLE = Desired(manifest=b"m" * 100, base=b"b", metadata={"timestamp.json": b"t"})


def packed(message: Desired | Receipt) -> bytes:
    return zstandard.compress(codec.encode(message), 19)


class Box:
    """Proofs, and what they were told and have asked."""

    def __init__(self) -> None:
        self.clock, self.told, self.asked = HandClock(), list[Desired](), list[Fetch]()
        self.running = "r1"
        self.proofs = Proofs(
            self.clock, lambda f: not self.asked.append(f), self.told.append, lambda: self.running, random.Random(1)
        )

    def tell(self, data: bytes, release: str = "r2", assignment: bytes = b"a") -> str:
        parcel = pack(cut(data)).parcel
        self.proofs.on_desired(Desired(manifest=b"", assignment=assignment, proof=parcel, release_id=release))
        return parcel.root.hex()

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.now_s += 1
            self.proofs.step()


@pytest.fixture
def box() -> Box:
    return Box()


def test_a_proof_and_an_assignment_make_what_the_installer_takes(box: Box) -> None:
    root = box.tell(packed(WHOLE))
    assert box.told == []
    assert box.proofs.pieces() == {root}
    box.proofs.on_piece(root, packed(WHOLE))
    assert box.told == [msgspec.structs.replace(WHOLE, assignment=b"a")]
    assert not box.proofs.pieces()
    box.tell(packed(WHOLE), assignment=b"a newer one")
    assert len(box.told) == 2, "the proof is here already"


def test_a_message_of_before_is_told_on_as_it_is(box: Box) -> None:
    box.proofs.on_desired(WHOLE)
    assert box.told == [WHOLE]


def test_the_newest_word_counts(box: Box) -> None:
    first = box.tell(packed(WHOLE))
    other = msgspec.structs.replace(WHOLE, manifest=b"other")
    second = box.tell(packed(other), "r3")
    box.proofs.on_piece(first, packed(WHOLE))
    box.proofs.on_piece(second, packed(other))
    assert [desired.manifest for desired in box.told] == [b"other"]


def test_silence_is_told_to_the_centre_and_then_it_does_without(box: Box) -> None:
    root = box.tell(packed(WHOLE))
    box.wait(SILENCE_S + 1)
    assert [(ask.layer, ask.shared, ask.silent) for ask in box.asked] == [(root, True, True)]
    assert box.proofs.shared
    box.wait(100)
    assert box.proofs.shared, "a centre that does not answer is down"
    for _ in range(ANSWERS_MAX):
        box.proofs.on_shelved(Shelved(layer=root, parcel=pack(cut(packed(WHOLE))).parcel))
    box.wait(SILENCE_S_MAX)
    assert not box.proofs.shared, "the centre is to tell it by itself"
    assert not box.proofs.pieces()
    box.proofs.on_desired(msgspec.structs.replace(WHOLE, assignment=b"by itself"))
    assert box.told[-1].assignment == b"by itself"
    box.wait(BACK_S)
    assert box.proofs.shared


def test_a_centre_that_says_the_same_again_does_not_begin_the_wait_anew(box: Box) -> None:
    answer = Shelved(layer=box.tell(packed(WHOLE)), parcel=pack(cut(packed(WHOLE))).parcel)
    for _ in range(ANSWERS_MAX):
        box.proofs.on_shelved(answer)
    box.wait(SILENCE_S - 1)
    root = box.tell(packed(WHOLE), assignment=b"a newer one")
    box.wait(1)
    assert not box.proofs.shared
    fresh = Box()
    fresh.tell(packed(WHOLE))
    fresh.tell(packed(WHOLE), assignment=b"a newer one")
    fresh.proofs.on_piece(root, packed(WHOLE))
    assert [desired.assignment for desired in fresh.told] == [b"a newer one"]


def test_a_centre_that_says_how_long_it_takes_is_waited_for(box: Box) -> None:
    data = packed(WHOLE)
    root = box.tell(data)
    box.proofs.on_shelved(Shelved(layer=root, parcel=pack(cut(data)).parcel, wait_s=100))
    box.wait(90)
    assert box.proofs.shared
    box.proofs.on_piece(root, data)
    assert len(box.told) == 1


def test_a_proof_that_the_centre_has_no_more_is_not_waited_for(box: Box) -> None:
    root = box.tell(packed(WHOLE))
    box.proofs.on_layer(LayerPart(layer=root, offset=0, total_bytes=0, data=b""))
    assert not box.proofs.pieces()
    assert box.proofs.shared, "it will tell of another"


def test_what_proves_once_more_what_runs_is_done_without(box: Box) -> None:
    root = box.tell(packed(WHOLE), "r1")
    for _ in range(3):
        box.proofs.on_piece(root, b"forged")
    assert not box.proofs.pieces()
    assert box.proofs.shared


@pytest.mark.parametrize(
    "data",
    [
        b"no frame",
        packed(Receipt()),
        packed(Desired(manifest=b"", proof=Parcel(bytes(32), 1))),
        zstandard.compress(bytes(PROOF_BYTES_MAX + 1)),
    ],
    ids=["garbage", "another message", "a proof in a proof", "bomb"],
)
def test_what_is_no_proof_is_not_told_on(box: Box, data: bytes) -> None:
    root = box.tell(data)
    for piece in cut(data):
        box.proofs.on_piece(layer_hash(piece), piece)
    box.proofs.on_piece(root, data)
    assert box.told == []
    assert not box.proofs.shared


def test_forged_pieces_do_not_reach_the_installer_and_are_given_up(box: Box) -> None:
    root = box.tell(packed(WHOLE))
    for _ in range(3):
        box.proofs.on_piece(root, packed(msgspec.structs.replace(WHOLE, manifest=b"forged")))
    assert box.told == []
    assert not box.proofs.shared


def test_a_proof_over_every_bound_is_not_even_begun(box: Box) -> None:
    parcel = Parcel(bytes(32), PROOF_BYTES_MAX + 1)
    box.proofs.on_desired(Desired(manifest=b"", proof=parcel, release_id="r2"))
    assert not box.proofs.pieces()
    assert not box.proofs.shared


def test_what_comes_this_way_is_verified_like_any_other(tmp_path: Path) -> None:
    centre = Centre(tmp_path / "centre", clock := HandClock())
    gateway = Gateway(tmp_path / "gateway", centre.repository.root(), clock)
    proofs = Proofs(clock, lambda _fetch: True, gateway.installer.on_desired, lambda: gateway.runs)
    for owner, good in (("gw-1", True), ("gw-2", False)):
        honest = centre.desired(centre.publish("belt", "helmet"), owner)
        data = packed(msgspec.structs.replace(honest, assignment=b""))
        parcel = pack(cut(data)).parcel
        before = gateway.runs
        proofs.on_desired(Desired(manifest=b"", assignment=honest.assignment, proof=parcel, release_id="x"))
        proofs.on_piece(parcel.root.hex(), data)
        gateway.serve(centre)
        assert (gateway.runs != before) is good
    assert "not for gateway" in gateway.installer.outcome


class Link:
    """What is listened to."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.words = 0

    def subscribe(self, topics: list[str]) -> None:
        self.words += 1
        self.topics += topics

    def unsubscribe(self, topics: list[str]) -> None:
        self.words += 1
        for topic in topics:
            self.topics.remove(topic)


def test_it_listens_to_what_is_needed_and_to_nothing_else() -> None:
    link, needs = Link(), {"a": frozenset({"1", "2"}), "b": frozenset({"2", "3"})}
    shared = Shared(link, lambda: needs["a"], lambda: needs["b"])  # type: ignore[arg-type]
    shared.settle()
    assert sorted(link.topics) == ["headframe/release/1", "headframe/release/2", "headframe/release/3"]
    words = link.words
    shared.settle()
    assert link.words == words
    needs["a"] = frozenset()
    shared.settle()
    assert sorted(link.topics) == ["headframe/release/2", "headframe/release/3"]

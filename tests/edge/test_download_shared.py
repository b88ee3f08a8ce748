"""Layers that are published once for all: taken piece by piece, gone on with after a restart, given up when wrong."""

import random
from pathlib import Path
from typing import Any

import pytest

from common.delta import make_delta
from common.ids import layer_hash
from common.manifest import Layer
from common.messages import Fetch, LayerPart, Parcel, Shelved
from common.parcels import PIECE_BYTES, cut, pack
from edge.download import Download, LayerFolder
from edge.intake import ANEW_S, ANSWERS_MAX, FORGED_MAX, SILENCE_S

BIG = random.Random(5).randbytes(7 * PIECE_BYTES + 123)
LAYER = Layer(layer_hash(BIG), len(BIG))


class Hand:
    """A clock."""

    now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return 0


class Box:
    """A download, and a broker on which everything lies."""

    def __init__(self, folder: Path, *layers: Layer, bytes_per_s: float = 0.0) -> None:
        self.clock, self.asked, self.received = Hand(), list[Fetch](), list[str]()
        self.folder = LayerFolder(folder)
        self.download = Download(layers or (LAYER,), self.folder, self.clock, self._ask, bytes_per_s, random.Random(1))
        self.broker: dict[str, bytes] = {}
        self.lay_out(BIG)

    def _ask(self, fetch: Fetch) -> bool:
        self.asked.append(fetch)
        return True

    def lay_out(self, data: bytes) -> Parcel:
        packed = pack(cut(data))
        self.broker |= {layer_hash(piece): piece for piece in cut(data)}
        if packed.index:
            self.broker[packed.parcel.root.hex()] = packed.index
        return packed.parcel

    def shelve(self, data: bytes = BIG, layer: Layer = LAYER, base: str = "", **more: Any) -> None:
        self.download.step()
        self.download.take_shelved(Shelved(layer=layer.hash, parcel=self.lay_out(data), base=base, **more))

    def receive(self, pieces: int = 1000) -> None:
        for _ in range(pieces):
            wanted = self.download.pieces()
            name = next((name for name in self.broker if name in wanted), "")  # in order, as a broker does
            if not name:
                return
            self.received.append(name)
            self.download.take_piece(name, self.broker[name])

    def alone(self) -> None:
        """Whatever is asked for comes in parts."""
        self.clock.now_s += SILENCE_S
        for _ in range(100):
            self.download.step()
            if not self.asked or self.download.done:
                return
            fetch = self.asked.pop()
            data = BIG[fetch.offset : fetch.offset + fetch.length]
            self.download.take(LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=len(BIG), data=data))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_a_layer_comes_as_pieces_that_anybody_may_have_asked_for(box: Box) -> None:
    box.shelve()
    assert box.asked[0].shared
    assert not box.asked[0].silent
    box.receive()
    assert box.download.done
    assert box.folder.path(LAYER.hash).read_bytes() == BIG
    assert len(box.received) == 9, "eight pieces and their index"


def test_after_a_restart_only_what_is_missing_is_received(tmp_path: Path) -> None:
    before = Box(tmp_path)
    before.shelve()
    before.receive(1 + 5)
    with before.folder.part_path(LAYER, "").open("ab") as file:
        file.write(b"torn by the power cut")
    again = Box(tmp_path)
    again.shelve()
    again.receive()
    assert again.folder.path(LAYER.hash).read_bytes() == BIG
    assert len(again.received) == 1 + 3


@pytest.mark.parametrize("first", ["shared", "alone"])
def test_a_parcel_and_parts_go_on_where_the_other_stopped(tmp_path: Path, first: str) -> None:
    before = Box(tmp_path)
    if first == "shared":
        before.shelve()
        before.receive(1 + 5)
        again = Box(tmp_path)
        again.download.step()
        assert again.asked[0].offset == 5 * PIECE_BYTES
        again.alone()
    else:
        before.download.step()
        before.download.take(LayerPart(layer=LAYER.hash, offset=0, total_bytes=len(BIG), data=BIG[: 3 * PIECE_BYTES]))
        again = Box(tmp_path)
        again.shelve()
        again.receive()
        assert len(again.received) == 1 + 5
    assert again.folder.path(LAYER.hash).read_bytes() == BIG


def test_a_delta_of_a_layer_that_is_here_is_taken_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    old = b"0" + BIG[1:]
    delta = make_delta(old, BIG, {}, {})
    box = Box(tmp_path)
    box.folder.path(layer_hash(old)).write_bytes(old)
    box.shelve(delta, base=layer_hash(old))
    box.receive()
    assert box.folder.path(LAYER.hash).read_bytes() == BIG
    other = Box(tmp_path / "other")
    other.shelve(delta, base="c" * 64)
    assert not other.download.pieces()
    other.alone()
    assert other.download.done


def test_forged_pieces_are_counted_and_then_it_is_fetched_alone(box: Box) -> None:
    box.shelve()
    box.receive(3)
    held = box.folder.part_path(LAYER, "").read_bytes()
    for number in range(FORGED_MAX):
        assert box.download.pieces(), "one forgery is no reason to give up"
        name = min(box.download.pieces())
        box.download.take_piece(name, b"forged %d" % number)
    assert not box.download.pieces()
    assert box.folder.part_path(LAYER, "").read_bytes() == held, "what was right stays"
    box.alone()
    assert box.folder.path(LAYER.hash).read_bytes() == BIG


def test_a_parcel_of_another_layer_that_ends_in_the_middle_does_no_harm(box: Box) -> None:
    box.shelve(BIG[:-1] + b"?")
    box.receive(4)
    for number in range(FORGED_MAX):
        box.download.take_piece(min(box.download.pieces()), b"forged %d" % number)
    stale = box.folder.part_path(LAYER, "")
    stale.write_bytes(bytes(stale.stat().st_size))
    box.alone()
    assert box.folder.path(LAYER.hash).read_bytes() == BIG


@pytest.mark.parametrize("stale", [BIG[:-1] + b"?", BIG[:PIECE_BYTES] * 7 + BIG[-123:]])
def test_a_parcel_that_makes_another_layer_is_fetched_alone(box: Box, stale: bytes) -> None:
    assert len(stale) == len(BIG)
    box.shelve(stale)
    box.receive()
    assert not box.download.done
    assert not box.download.pieces()
    box.alone()
    assert box.folder.path(LAYER.hash).read_bytes() == BIG


def test_silence_is_told_and_a_centre_that_answers_for_nothing_is_asked_for_parts(box: Box) -> None:
    box.shelve()
    box.receive(3)
    box.asked.clear()
    spoken = []
    for second in range(1, 80):
        box.clock.now_s += 1
        box.download.step()
        if len(box.asked) > len(spoken):
            spoken.append(second)
            box.download.take_shelved(Shelved(layer=LAYER.hash, parcel=pack(cut(BIG)).parcel))
    assert spoken[: ANSWERS_MAX + 1] == [5, 15, 35, 75]
    assert [fetch.silent for fetch in box.asked[: ANSWERS_MAX + 1]] == [*[True] * ANSWERS_MAX, False]
    assert not box.asked[-1].shared
    assert box.asked[0].offset == 2 * PIECE_BYTES
    box.alone()
    assert box.download.done


def test_when_nothing_comes_the_broker_is_asked_once_more_before_the_centre(box: Box) -> None:
    """nats-server sends a message to nobody who subscribes in the moment in which it is stored."""
    box.shelve()
    box.receive(3)
    box.asked.clear()
    box.clock.now_s += ANEW_S
    box.download.step()
    assert not box.download.pieces(), "unsubscribed"
    assert box.download.pieces(), "and subscribed again"
    assert box.asked == []


def test_a_slow_link_is_asked_for_one_piece_at_a_time_and_not_hurried(box: Box) -> None:
    box.shelve()
    for _ in range(8):
        box.clock.now_s += 0.1
        box.receive(1)
    assert len(box.download.pieces()) == 1, "the last one"
    slow = Box(box.folder.folder / "slow")
    slow.shelve()
    for number in range(8):
        for _ in range(13):
            slow.clock.now_s += 1
            slow.download.step()
            if number > 1:  # how long a piece takes is known by then
                assert len(slow.download.pieces()) == 1
        slow.receive(1)
    assert sum(fetch.silent for fetch in slow.asked) <= 2


def test_while_the_centre_is_down_nobody_asks_it_for_a_copy_of_its_own(box: Box) -> None:
    box.shelve()
    box.receive(3)
    for _ in range(600):
        box.clock.now_s += 1
        box.download.step()
    assert all(fetch.shared for fetch in box.asked)
    assert len(box.asked) <= 15, "ever less often"
    assert not box.download.pieces(), "the broker is asked anew"
    box.receive()
    assert box.download.done


def test_a_centre_that_says_how_long_it_takes_is_waited_for(box: Box) -> None:
    box.shelve(wait_s=300.0)
    box.asked.clear()
    box.clock.now_s += 200
    box.download.step()
    assert box.asked == []
    box.receive()
    assert box.download.done


def test_a_bound_on_bytes_a_second_is_kept_and_each_begins_at_a_moment_of_its_own(tmp_path: Path) -> None:
    began = []
    for number in range(8):
        box = Box(tmp_path / str(number), bytes_per_s=PIECE_BYTES)
        box.download._rng.seed(number)
        box.shelve(bytes_per_s=2 * PIECE_BYTES)
        while not box.download.pieces():
            box.clock.now_s += 0.1
        began.append(box.clock.now_s)
        at_s = box.clock.now_s
        while not box.download.done:
            box.receive(1)
            box.clock.now_s += 0.5
        assert box.clock.now_s - at_s >= len(BIG) / PIECE_BYTES - 1
    assert max(began) - min(began) > 1


def test_an_answer_in_parts_is_taken_though_a_parcel_was_asked_for(box: Box) -> None:
    """A centre of before, or one that shares nothing."""
    box.download.step()
    box.alone()
    assert box.download.done

"""What is published once for the fleet: not twice for nothing, within a bound of bytes a second, and cleared again."""

import random
from pathlib import Path

import pytest

from cloud.settings import SharingSettings
from cloud.shelf import IN_USE_S, PROBE_AGAIN_S, PROBE_NAME, PROBE_S, REPEAT_S, REPEATED, Shelf
from common.ids import layer_hash
from common.parcels import PIECE_BYTES
from common.topics import parse_release


class Centre:
    """A shelf, its clock, and the broker behind it."""

    def __init__(self, folder: Path, *, carries: bool = True, **settings: float) -> None:
        self.now_s, self.up, self.connection = 1000.0, True, 1
        self.carries, self.probes = carries, 0
        self.retained: dict[str, bytes] = {}
        self.published: list[str] = []
        self.folder, self.settings = folder, SharingSettings.model_validate(settings)
        self.start()

    def start(self) -> None:
        self.shelf = Shelf(self.folder / "shelf.json", self.settings, self, self._publish, lambda: self.connection)
        self.shelf.step()

    def wall_ns(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s

    def _publish(self, topic: str, payload: bytes, retain: bool) -> bool:
        name = parse_release(topic)
        if name == PROBE_NAME:
            assert not retain
            self.probes += 1
            if self.carries and self.up:
                self.shelf.on_message(payload)
            return self.up
        assert retain
        assert self.shelf.carried, "nothing is published before that is known"
        if self.up and payload:
            assert layer_hash(payload) == name
            self.retained[name] = payload
            self.published.append(name)
        elif self.up:
            self.retained.pop(name, None)
        return self.up

    def layer(self, number: int, pieces: int = 3) -> Path:
        path = self.folder / f"layer-{number}"
        if not path.exists():
            path.write_bytes(random.Random(number).randbytes(pieces * PIECE_BYTES - 5))
        return path

    def ask(self, path: Path, offset: int = 0, *, silent: bool = False) -> bool:
        return self.shelf.lay_out(self.shelf.pack(path), path, offset, silent=silent)


@pytest.fixture
def centre(tmp_path: Path) -> Centre:
    return Centre(tmp_path)


def test_however_many_ask_it_is_published_once(centre: Centre) -> None:
    for _ in range(100):
        assert centre.ask(centre.layer(1))
    assert len(centre.published) == len(centre.retained) == 4, "three pieces and their index"
    centre.shelf.lay_out(centre.shelf.pack(b"a proof"), b"a proof", first=True)
    assert centre.retained[layer_hash(b"a proof")] == b"a proof"
    assert centre.shelf.figures()["parcels"] == 2


def test_who_has_the_beginning_has_only_the_rest_published(centre: Centre) -> None:
    centre.ask(centre.layer(1), 2 * PIECE_BYTES)
    assert len(centre.published) == 2
    centre.ask(centre.layer(1))
    assert len(centre.published) == len(set(centre.published)) == 4


@pytest.mark.parametrize("restarted", [False, True])
def test_what_did_not_arrive_is_published_again_and_not_at_every_word(centre: Centre, restarted: bool) -> None:
    path = centre.layer(1, pieces=20)
    centre.ask(path)
    if restarted:  # the broker, and it had kept nothing
        centre.retained.clear()
        centre.connection += 1
    for _ in range(50):
        centre.ask(path, PIECE_BYTES, silent=True)
    assert len(centre.published) == 21
    centre.now_s += REPEAT_S
    for _ in range(50):
        centre.ask(path, PIECE_BYTES, silent=True)
    again = centre.published[21:]
    names = centre.shelf.pack(path).names
    assert again[1] == names[1], "after the index"
    assert len(again) == (1 + REPEATED if restarted else 2)


def test_while_the_link_is_down_it_waits(centre: Centre) -> None:
    centre.up = False
    centre.ask(centre.layer(1))
    assert centre.shelf.figures()["waiting_pieces"] == 4
    centre.up = True
    centre.shelf.step()
    assert len(centre.retained) == 4


def test_a_bound_on_bytes_a_second_is_kept_and_a_proof_does_not_wait_behind_layers(tmp_path: Path) -> None:
    centre = Centre(tmp_path, bytes_per_s=PIECE_BYTES)
    centre.ask(centre.layer(1, pieces=20))
    assert centre.shelf.wait_s() > 15
    centre.shelf.lay_out(centre.shelf.pack(b"a proof"), b"a proof", first=True)
    for second in range(1, 12):
        centre.now_s += 1
        centre.shelf.step()
        assert sum(map(len, centre.retained.values())) <= (second + 1) * PIECE_BYTES + 1000
        assert layer_hash(b"a proof") in centre.retained or second < 2
    assert len(centre.retained) >= 11
    assert not centre.shelf.spare(1000), "what is given to one gateway alone is within the same bound"


def test_it_is_cleared_when_nobody_has_asked_for_long(tmp_path: Path) -> None:
    centre = Centre(tmp_path, keep_s=100)
    centre.ask(centre.layer(1))
    centre.now_s += 60
    centre.ask(centre.layer(2))
    centre.now_s += 60
    centre.up = False
    centre.shelf.step()
    centre.up = True
    centre.shelf.step()
    assert len(centre.retained) == 4
    assert centre.shelf.figures()["parcels"] == 1
    centre.ask(centre.layer(1))
    assert len(centre.retained) == 8, "who comes late is served all the same"


def test_a_piece_that_another_parcel_has_too_is_not_cleared(tmp_path: Path) -> None:
    centre = Centre(tmp_path, keep_s=100)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(bytes(PIECE_BYTES) + b"1")
    two.write_bytes(bytes(PIECE_BYTES) + b"2")
    centre.ask(one)
    centre.now_s += 60
    centre.ask(two)
    centre.now_s += 60
    centre.shelf.step()
    assert layer_hash(bytes(PIECE_BYTES)) in centre.retained


def test_there_is_a_bound_on_what_lies_there(tmp_path: Path) -> None:
    centre = Centre(tmp_path, bytes_max=7 * PIECE_BYTES)
    assert centre.ask(centre.layer(1))
    assert centre.ask(centre.layer(2))
    assert not centre.ask(centre.layer(3)), "both are in use: this one is given in parts"
    centre.now_s += IN_USE_S
    centre.ask(centre.layer(2))
    assert centre.ask(centre.layer(3))
    centre.shelf.step()
    assert centre.shelf.figures()["bytes"] <= 7 * PIECE_BYTES
    assert len(centre.retained) == 8, "the one that nobody asked for has gone"


def test_what_a_killed_centre_has_published_is_cleared_by_the_next(centre: Centre) -> None:
    centre.ask(centre.layer(1))
    centre.ask(centre.layer(2))
    centre.start()  # kill -9: no word was said
    centre.ask(centre.layer(2))
    centre.shelf.step()
    assert len(centre.retained) == 4
    centre.start()
    centre.shelf.step()
    assert centre.retained == {}


def test_a_file_that_has_gone_is_no_reason_to_stop(centre: Centre) -> None:
    path = centre.layer(1)
    packed = centre.shelf.pack(path)
    path.unlink()
    assert centre.shelf.lay_out(packed, path)
    centre.ask(centre.layer(2))
    assert len(centre.retained) == 1 + 4


def test_where_the_broker_does_not_carry_it_nothing_is_published_and_it_is_looked_again(tmp_path: Path) -> None:
    centre = Centre(tmp_path, carries=False)
    assert centre.shelf.carried is None
    assert not centre.ask(centre.layer(1))
    centre.now_s += PROBE_S
    centre.shelf.step()
    assert centre.shelf.carried is False
    for _ in range(10):
        centre.now_s += 60
        centre.shelf.step()
    assert centre.probes == 1, "mosquitto ends the connection at each"
    centre.carries = True
    centre.now_s += PROBE_AGAIN_S
    centre.shelf.step()
    assert centre.ask(centre.layer(1))


def test_sharing_that_is_switched_off_is_not_even_looked_for(tmp_path: Path) -> None:
    centre = Centre(tmp_path, enabled=False)
    assert (centre.shelf.carried, centre.probes) == (False, 0)
    assert not centre.ask(centre.layer(1))

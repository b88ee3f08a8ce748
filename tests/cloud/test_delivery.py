"""Nothing is missing: what a spool numbered is stored, ended or waiting, and the centre can tell."""

import random
from collections.abc import Callable

import msgspec
import pytest
from typer.testing import CliRunner

from cloud import epochs as epochs_module
from cloud.cli import app
from cloud.epochs import Epochs
from cloud.store import Gap, Store
from common.errors import EnvironmentFault, WireError
from common.messages import Ended, Sample, SpoolEpoch

MakeSample = Callable[..., Sample]
EPOCH = "e" * 16


def numbered(make_sample: MakeSample, number: int, epoch: str = EPOCH, **more: object) -> Sample:
    return msgspec.structs.replace(make_sample(number, **more), epoch=epoch, sequence=number)


def entry(sequence: int, state: str = "evicted", epoch: str = EPOCH) -> Ended:
    return Ended(epoch, sequence, sequence.to_bytes(16, "big"), 0.25, state)


def say(store: Store, gateway_id: str, epochs: list[SpoolEpoch], at_ns: int) -> list[str]:
    """A heartbeat, written down; each as after a restart of the centre."""
    book = Epochs(store)
    back = book.take(gateway_id, epochs, at_ns)
    book.flush()
    return back


def only_gap(store: Store) -> Gap:
    (gap,) = store.gaps()
    return gap


def test_stored_ended_and_waiting_leave_nothing_missing(store: Store, make_sample: MakeSample) -> None:
    store.add_samples([numbered(make_sample, number) for number in (1, 2, 5)], 1)
    store.add_ended("north-1", [entry(3), entry(4, "expired")], 1)
    assert say(store, "north-1", [SpoolEpoch(EPOCH, 8, 6, 3)], 1) == []
    assert only_gap(store) == Gap("north-1", EPOCH, 8, 3, 2, 3, 0, 0, 0)


def test_a_number_that_is_nowhere_is_missing(store: Store, make_sample: MakeSample) -> None:
    store.add_samples([numbered(make_sample, number) for number in (1, 2, 5)], 1)
    say(store, "north-1", [SpoolEpoch(EPOCH, 5, 6, 0)], 1)
    assert only_gap(store).missing == 2
    store.add_ended("north-1", [entry(3), entry(3)], 1)
    assert only_gap(store).missing == 1
    store.add_samples([numbered(make_sample, 4)], 1)
    assert only_gap(store).missing == 0


def test_what_was_accepted_since_hides_no_loss(store: Store, make_sample: MakeSample) -> None:
    """The heartbeat is old, ten more samples have come; number 2 was receipted by nobody and is gone."""
    store.add_samples([numbered(make_sample, number) for number in (1, 3)], 1)
    say(store, "north-1", [SpoolEpoch(EPOCH, 3, 4, 0)], 1)
    store.add_samples([numbered(make_sample, number) for number in range(4, 14)], 1)
    assert only_gap(store).missing == 1


def test_a_sample_that_came_after_all_counts_once(store: Store, make_sample: MakeSample) -> None:
    """It was sent, evicted before its receipt, and reported so."""
    store.add_samples([numbered(make_sample, number) for number in (1, 2)], 1)
    store.add_ended("north-1", [entry(2)], 1)
    say(store, "north-1", [SpoolEpoch(EPOCH, 3, 3, 1)], 1)
    gap = only_gap(store)
    assert (gap.stored, gap.ended, gap.waiting, gap.missing) == (2, 0, 1, 0)


def test_a_head_that_goes_back_and_numbers_given_twice_are_seen(store: Store, make_sample: MakeSample) -> None:
    store.add_samples([numbered(make_sample, number) for number in (1, 2, 3)], 1)
    assert say(store, "north-1", [SpoolEpoch(EPOCH, 3, 4, 0)], 1) == []
    assert say(store, "north-1", [SpoolEpoch(EPOCH, 2, 3, 0)], 2) == [EPOCH]
    other = msgspec.structs.replace(make_sample(99), epoch=EPOCH, sequence=3)
    store.add_samples([other], 3)
    gap = only_gap(store)
    assert (gap.clashes, gap.went_back, gap.head) == (1, 1, 3)
    assert other.sample_id in store.sample_ids(), "both are kept"


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_delivery_is_accounted_for_and_any_loss_is_found(
    store: Store, make_sample: MakeSample, seed: int
) -> None:
    rng = random.Random(seed)
    count = 60
    fate = {number: rng.choice(["stored", "ended", "both", "waiting"]) for number in range(1, count + 1)}
    lost = set(rng.sample([number for number in fate if fate[number] != "waiting"], rng.randrange(4)))
    store.add_samples(
        [numbered(make_sample, n, size=(8, 8)) for n in fate if fate[n] in ("stored", "both") and n not in lost], 1
    )
    store.add_ended("north-1", [entry(n) for n in fate if fate[n] in ("ended", "both") and n not in lost], 1)
    waiting = [number for number in fate if fate[number] == "waiting"]
    say(store, "north-1", [SpoolEpoch(EPOCH, count, min(waiting, default=count + 1), len(waiting))], 1)
    assert only_gap(store).missing == len(lost)


def test_what_no_spool_says_is_refused(store: Store) -> None:
    wrong = [
        SpoolEpoch(EPOCH, 5, 9, 0),
        SpoolEpoch(EPOCH, 5, 1, 6),
        SpoolEpoch("", 1, 1, 0),
        SpoolEpoch(EPOCH, -1, 0, 0),
    ]
    for said in wrong:
        with pytest.raises(WireError):
            say(store, "north-1", [said], 1)
    for bad in (entry(0), entry(1, "lost"), entry(1, epoch="../x"), entry(2**62)):
        with pytest.raises(WireError):
            store.add_ended("north-1", [entry(1), bad], 1)
    assert store.gaps() == []


def test_a_gateway_that_invents_epochs_is_bounded(store: Store) -> None:
    for number in range(80):
        say(store, "north-1", [SpoolEpoch(f"{number:016x}", 0, 1, 0)], number)
    assert [gap.epoch for gap in store.gaps()] == [f"{number:016x}" for number in range(16, 80)]


def test_a_fleet_that_repeats_itself_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "FLUSH_MAX", 3)
    written: list[int] = []
    put = store.put_spool_lives
    monkeypatch.setattr(store, "put_spool_lives", lambda *both: (written.append(len(both[0])), put(*both)))
    book = Epochs(store)
    for at_ns in range(3):
        for number in range(7):
            assert book.take(f"gw-{number}", [SpoolEpoch(EPOCH, 5, 6, 0)], at_ns) == []
        book.flush()
    assert written == [3, 3, 1]


def test_a_failing_disk_keeps_what_was_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Epochs(store)
    book.take("north-1", [SpoolEpoch(EPOCH, 5, 6, 0)], 1)

    def full(*_: object) -> None:
        raise EnvironmentFault("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_spool_lives", full)
        book.flush()
    assert store.gaps() == []
    book.flush()
    assert only_gap(store).head == 5


def test_the_command_says_what_is_missing(store: Store, make_sample: MakeSample, tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    config = folder / "cloud.toml"
    config.write_text(f'data_dir = "{folder}"\ndatabase = "sqlite:///{folder / "centre.db"}"\n')
    store.add_samples([numbered(make_sample, 1)], 1)
    say(store, "north-1", [SpoolEpoch(EPOCH, 1, 2, 0)], 1)
    good = CliRunner().invoke(app, ["gaps", "--config", str(config)])
    assert (good.exit_code, "nothing is missing" in good.output) == (0, True)
    say(store, "north-1", [SpoolEpoch(EPOCH, 2, 3, 0)], 1)
    bad = CliRunner().invoke(app, ["gaps", "--json", "--config", str(config)])
    assert bad.exit_code == 1
    assert '"missing": 1' in bad.output

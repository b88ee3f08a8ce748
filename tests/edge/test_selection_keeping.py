"""What a restart must not cost: budget, what was sent, what is normal; and what a damaged file must not do."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import WireError
from common.messages import Prediction
from edge.selection import Candidate, Chosen, Selector
from edge.selection.keeping import BUSY_S, FOLDER, QUIET_S, Keeper, decode, encode
from edge.selection.normal import CameraNormal
from edge.selection.selector import FIRST_CREDIT, SENT, CameraMemory
from edge.settings import SelectionSettings

DIMENSION = 24
SECOND_NS = 10**9
SETTINGS = SelectionSettings(samples_per_hour=3000, window_s=4, trickle=0.0)


def looks(count: int, seed: int = 1, first_s: int = 1) -> list[Candidate]:
    generator = np.random.default_rng(seed)
    prediction = Prediction("belt", ("normal", "tear"), (0.9, 0.1), 1.0)
    return [
        Candidate(
            "belt", (first_s + n) * SECOND_NS, generator.normal(size=DIMENSION).astype(np.float32), (prediction,), n
        )
        for n in range(count)
    ]


def play(selector: Selector, frames: list[Candidate]) -> list[Chosen]:
    return [choice for frame in frames for choice in selector.offer(frame)] + selector.flush()


def opened(folder: Path, now_s: float = 0.0) -> tuple[Selector, Keeper]:
    selector = Selector(SETTINGS, ["belt"])
    return selector, Keeper(folder, selector, ["belt"], now_s)


def test_what_was_sent_is_not_sent_again_after_a_restart(tmp_path: Path) -> None:
    selector, keeper = opened(tmp_path)
    selector.adopt("b")
    sent = play(selector, looks(40))
    assert len(sent) > 10
    keeper.keep_all(1.0)
    again = [
        dataclasses.replace(choice.candidate, captured_at_ns=(100 + n) * SECOND_NS) for n, choice in enumerate(sent)
    ]
    forgetful, _ = opened(tmp_path / "elsewhere")
    assert play(forgetful, again)
    restarted, _ = opened(tmp_path)
    restarted.adopt("b")
    assert play(restarted, again) == []


def test_the_budget_that_was_saved_is_there_and_no_new_first_sample_is_given(tmp_path: Path) -> None:
    selector, keeper = opened(tmp_path)
    play(selector, looks(40))
    before = selector.remember("belt")
    keeper.keep_all(1.0)
    restarted, _ = opened(tmp_path)
    after = restarted.remember("belt")
    assert before is not None
    assert after is not None
    assert after.budget == before.budget != FIRST_CREDIT


def test_what_is_normal_for_the_camera_is_remembered(tmp_path: Path) -> None:
    selector, keeper = opened(tmp_path)
    play(selector, looks(40))
    keeper.keep_all(1.0)
    before, after = selector.remember("belt"), opened(tmp_path)[0].remember("belt")
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after.normal.mean, before.normal.mean, rtol=1e-6)
    assert after.normal.looks == before.normal.looks == 40


def test_another_backbone_forgets_what_no_longer_compares(tmp_path: Path) -> None:
    selector, keeper = opened(tmp_path)
    selector.adopt("b")
    play(selector, looks(40))
    keeper.keep_all(1.0)
    restarted, _ = opened(tmp_path)
    restarted.adopt("another")
    memory = restarted.remember("belt")
    assert memory is None


def test_a_camera_is_written_when_it_has_sent_something_or_after_an_hour(tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "belt.bin"
    selector, keeper = opened(tmp_path)
    keeper.keep(BUSY_S)
    assert not path.exists()
    play(selector, looks(40))
    keeper.keep(BUSY_S - 1)
    assert not path.exists()
    keeper.keep(BUSY_S)
    first = path.read_bytes()
    selector.offer(looks(1, seed=9, first_s=1000)[0])
    keeper.keep(2 * BUSY_S)
    assert path.read_bytes() == first
    keeper.keep(BUSY_S + QUIET_S)
    assert path.read_bytes() != first


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: data.replace(b"selection 1", b"selection 9"),
        lambda data: b"\0" * len(data),
    ],
)
def test_a_damaged_file_is_put_aside_and_the_camera_begins_anew(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    selector, keeper = opened(tmp_path)
    play(selector, looks(40))
    keeper.keep_all(1.0)
    path = tmp_path / FOLDER / "belt.bin"
    path.write_bytes(damage(path.read_bytes()))
    restarted, kept = opened(tmp_path)
    assert kept.damaged == [path.with_suffix(".damaged")]
    assert kept.damaged[0].exists()
    assert not path.exists()
    assert restarted.remember("belt") is None
    assert play(restarted, looks(40))


def test_a_disk_that_cannot_be_written_does_not_stop_the_selection(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    selector, keeper = opened(tmp_path)
    assert play(selector, looks(40))
    keeper.keep_all(1.0)


@given(
    sent=st.integers(0, 5),
    looks_=st.integers(1, 10**6),
    budget=st.floats(0, 100),
    dimension=st.integers(1, 40),
    space=st.text(max_size=20),
)
def test_a_memory_survives_the_file(sent: int, looks_: int, budget: float, dimension: int, space: str) -> None:
    generator = np.random.default_rng(sent)
    mean = generator.normal(size=dimension)
    units = tuple(generator.normal(size=dimension) for _ in range(sent))
    memory = CameraMemory(space, budget, units, CameraNormal(mean, looks_))
    back = decode("belt", encode("belt", memory))
    assert (back.space, back.budget, back.normal.looks, len(back.sent)) == (space, budget, looks_, sent)
    np.testing.assert_allclose(back.normal.mean, mean, rtol=1e-6)
    for one, other in zip(back.sent, units, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_a_file_of_another_camera_or_with_too_much_in_it_is_refused() -> None:
    memory = CameraMemory("b", 0.5, (np.ones(4),), CameraNormal(np.ones(4), 3))
    with pytest.raises(WireError, match="of camera belt"):
        decode("gate", encode("belt", memory))
    with pytest.raises(WireError, match="do not fit"):
        decode("belt", encode("belt", dataclasses.replace(memory, sent=(np.ones(4),) * (SENT + 1))))
    with pytest.raises(WireError, match="not finite"):
        decode("belt", encode("belt", dataclasses.replace(memory, sent=(np.full(4, np.nan),))))

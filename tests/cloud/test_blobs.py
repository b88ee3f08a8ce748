"""Segments: what was appended comes back, what a crash tore is nobody's, and old files are still read."""

import errno
import os
from pathlib import Path

import pytest

from cloud.store import blobs as blobs_module
from cloud.store.blobs import BLOCK_BYTES, Blobs
from common.errors import EnvironmentFault
from common.ids import layer_hash

PICTURES = [(bytes([number]) * 16, bytes([number]) * size) for number, size in enumerate((0, 1, 5000, 4072, 70_000))]


def test_what_is_appended_comes_back_from_its_place(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    places = blobs.append(PICTURES) + blobs.append(PICTURES[:2])
    assert [blobs.get(place) for place in places] == [data for _, data in (*PICTURES, *PICTURES[:2])]
    assert list(blobs.records()) == list(zip((name for name, _ in (*PICTURES, *PICTURES[:2])), places, strict=True))
    blobs.close()
    again = Blobs(tmp_path / "blobs")
    assert again.get(places[4]) == PICTURES[4][1]
    assert again.append(PICTURES[:1])[0].split(":")[0] != places[0].split(":")[0], "a writer has its own segment"
    again.close()


def test_a_batch_larger_than_the_slab_is_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "SLAB_BYTES", 2 * BLOCK_BYTES)
    blobs = Blobs(tmp_path / "blobs")
    places = blobs.append(PICTURES)
    assert [blobs.get(place) for place in places] == [data for _, data in PICTURES]
    blobs.close()


def test_a_segment_that_is_full_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "SEGMENT_BYTES", 50_000)
    blobs = Blobs(tmp_path / "blobs")
    places = [blobs.append([picture])[0] for picture in PICTURES for _ in range(4)]
    assert len({place.split(":")[0] for place in places}) > 2
    assert all(blobs.get(place) == PICTURES[number // 4][1] for number, place in enumerate(places))
    blobs.close()


def test_a_torn_tail_hides_nothing_that_was_whole(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    places = blobs.append(PICTURES)
    blobs.append([(b"t" * 16, bytes(9000))])
    blobs.close()
    (segment,) = (tmp_path / "blobs" / "segments").iterdir()
    os.truncate(segment, segment.stat().st_size - BLOCK_BYTES)
    assert [place for _, place in Blobs(tmp_path / "blobs").records()] == places


@pytest.mark.parametrize("failing", ["pwrite", "fdatasync"])
def test_after_a_failed_write_the_segment_is_never_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    blobs = Blobs(tmp_path / "blobs")
    before = blobs.append(PICTURES)

    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, failing, fails)
        with pytest.raises(EnvironmentFault, match="is full"):
            blobs.append(PICTURES)
    after = blobs.append(PICTURES)
    assert after[0].split(":")[0] != before[0].split(":")[0]
    assert [blobs.get(place) for place in before + after] == 2 * [data for _, data in PICTURES]
    blobs.close()


def test_where_the_page_cache_cannot_be_passed_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def without_direct(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & blobs_module._DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", without_direct)
    blobs = Blobs(tmp_path / "blobs")
    assert blobs.get(blobs.append(PICTURES)[3]) == PICTURES[3][1]
    blobs.close()


def test_a_picture_of_before_segments_is_still_read(tmp_path: Path) -> None:
    name = layer_hash(b"picture")
    path = tmp_path / name[:2] / name[2:4] / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")
    blobs = Blobs(tmp_path)
    assert blobs.get(name) == b"picture"
    for unknown in (layer_hash(b"x"), "0123456789abcdef:24:3"):
        with pytest.raises(KeyError):
            blobs.get(unknown)
    blobs.close()


def test_a_place_that_holds_another_record_is_damage(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    (place,) = blobs.append(PICTURES[2:3])
    name, offset, length = place.split(":")
    for wrong in (f"{name}:{int(offset) + 1}:{length}", f"{name}:{offset}:{int(length) - 1}", f"{name}:900000:5"):
        with pytest.raises(EnvironmentFault, match="damaged"):
            blobs.get(wrong)
    blobs.close()

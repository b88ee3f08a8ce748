"""The processes' entries: what a full disk must not keep from running."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud import app as cloud_app
from edge import app as edge_app


@pytest.mark.parametrize(
    ("tell", "name"),
    [
        (lambda folder: cloud_app._tell_where(folder, {"port": 8080}), "console.json"),
        (lambda folder: edge_app._tell_where(folder, 8080), "status.json"),
    ],
)
def test_where_it_listens_is_told_when_the_disk_takes_it_and_no_error_before(
    tell: Callable[[Path], bool], name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.touch()  # nothing can be written into it
    assert not tell(folder)
    folder.unlink()
    folder.mkdir()
    assert tell(folder)
    assert json.loads((folder / name).read_text())["port"] == 8080

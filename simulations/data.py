"""Where real pictures, videos and weights lie: in `HEADFRAME_DATA`, by default `shared/data` beside the clone."""

import os
from pathlib import Path

from common.errors import OperatorError

BESIDE_THE_CLONE = Path(__file__).resolve().parents[2] / "shared" / "data"


def find_data(*inside: str) -> Path:
    """A file or folder of the data.

    Args:
        inside: its path, part by part.

    Raises:
        OperatorError: it is not there; says how to name the folder.
    """
    path = Path(os.environ.get("HEADFRAME_DATA", BESIDE_THE_CLONE), *inside)
    if not path.exists():
        raise OperatorError(f"there is no {path}", "Set HEADFRAME_DATA to the folder of the data sets.")
    return path

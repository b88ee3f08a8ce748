"""Clips of simulated cameras: a video file that any camera source can play, and its truth beside it as JSON."""

import json
from pathlib import Path

import av

from common.errors import OperatorError
from common.files import sync_folder, write_atomically
from simulations.belts import BeltCamera, Truth

CODEC_OPTIONS = {"preset": "ultrafast", "crf": "25", "tune": "zerolatency"}
"""Fast, and the noise stays: a smooth picture would embed differently from the stills that trained the head."""


def write_clip(path: Path, camera: BeltCamera, seconds: float) -> None:
    """Write `seconds` of the camera as H.264 to `path`, and the truth per frame to `path` with suffix .json.

    The JSON maps frame numbers to scenarios to classes: `{"0": {"foreign-object": "wood", ...}, ...}`, null where an
    object is only partly in the picture. Both files appear whole, the truth first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = camera.size
    truths: dict[str, Truth] = {}
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with av.open(str(unfinished), "w") as container:
            stream = container.add_stream("libx264", rate=round(camera.fps), options=CODEC_OPTIONS)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            stream.codec_context.gop_size = round(2 * camera.fps)
            for index in range(round(seconds * camera.fps)):
                picture, truths[str(index)] = camera.frame(index)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            container.mux(stream.encode())
        write_atomically(truth_path(path), json.dumps(truths).encode())
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def read_truth(path: Path) -> dict[int, Truth]:
    """The truth of a clip by frame number.

    Args:
        path: of the clip.

    Raises:
        OperatorError: there is no truth beside the clip.
    """
    try:
        frames = json.loads(truth_path(path).read_bytes())
    except FileNotFoundError as error:
        raise OperatorError(f"no truth beside {path}", "Write the clip with simulations.clips.write_clip.") from error
    return {int(index): truth for index, truth in frames.items()}


def truth_path(path: Path) -> Path:
    """Where the truth of a clip is."""
    return path.with_suffix(".json")

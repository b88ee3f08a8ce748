"""Real RTSP for tests and benchmarks: GStreamer's server as a child process, playing clips from memory for ever.

The server is Debian's (`PACKAGES`), run by the system's Python (`simulations.gst_server`). Where it is not installed,
`why_no_server` says so, and tests are skipped with that sentence.
"""

import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.errors import EnvironmentFault

PACKAGES: Final = (
    "python3-gi",
    "gir1.2-gst-rtsp-server-1.0",
    "gstreamer1.0-plugins-base",
    "gstreamer1.0-plugins-good",
    "gstreamer1.0-plugins-bad",
)
"""`bad` holds the H.264 parser. `run.py test` installs them where it may."""
SYSTEM_PYTHON: Final = "/usr/bin/python3"
PROBE: Final = (
    "import gi\ngi.require_version('Gst', '1.0')\ngi.require_version('GstRtspServer', '1.0')\n"
    "from gi.repository import Gst, GstRtspServer\nGst.init(None)\n"
    "assert all(Gst.ElementFactory.find(n) for n in ('qtdemux', 'h264parse', 'rtph264pay', 'appsrc'))\n"
)
START_S: Final = 30.0
STOP_S: Final = 5.0


@functools.cache
def why_no_server() -> str | None:
    """Why there is no RTSP server on this machine; None when there is one."""
    if shutil.which(SYSTEM_PYTHON) is None:
        return f"there is no {SYSTEM_PYTHON}"
    probe = subprocess.run([SYSTEM_PYTHON, "-c", PROBE], capture_output=True, timeout=START_S, check=False)
    if probe.returncode == 0:
        return None
    return f"GStreamer's RTSP server is not installed: apt-get install {' '.join(PACKAGES)}"


class RtspServer:
    """GStreamer's RTSP server on a free port of the loopback.

    Args:
        clips: name -> H.264 file without B-frames, all of the same size if a mount changes between them.
        mounts: mount (`camera-1`) -> clip it plays, and the second at which it begins.
    """

    def __init__(self, clips: Mapping[str, Path], mounts: Mapping[str, tuple[str, float]]) -> None:
        self._plan = json.dumps(
            {
                "clips": {name: str(path) for name, path in clips.items()},
                "mounts": {f"/{mount}": list(played) for mount, played in mounts.items()},
            }
        )
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            EnvironmentFault: it is not installed, or did not start.
        """
        if why := why_no_server():
            raise EnvironmentFault(why, "Install it, or leave out what needs a real RTSP server.")
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(Path(__file__).with_name("gst_server.py")), self._plan],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        guard = threading.Timer(START_S, self._process.kill)  # a child that says nothing must not block the reader
        guard.start()
        line = self._process.stdout.readline() if self._process.stdout else ""
        guard.cancel()
        if not line:
            self.kill()
            raise EnvironmentFault("GStreamer's RTSP server did not start", "Its error is on standard error.")
        self.port = int(line)

    @property
    def pid(self) -> int:
        """Of the server's process, to move it to another core."""
        return self._process.pid if self._process else 0

    def url(self, mount: str) -> str:
        """Where a mount is to be seen."""
        return f"rtsp://127.0.0.1:{self.port}/{mount}"

    def show(self, mount: str, clip: str) -> None:
        """From now on a mount plays another clip; its viewers see no break."""
        if self._process and self._process.stdin:
            self._process.stdin.write(f"/{mount} {clip}\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """kill -9: every viewer's connection breaks."""
        if self._process:
            self._process.kill()
            self._close()

    def stop(self) -> None:
        """End the process; killed when it does not end in time."""
        if self._process is None:
            return
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    def _close(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process.wait(STOP_S)
        self._process = None

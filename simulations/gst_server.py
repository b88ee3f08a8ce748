"""A real RTSP server in a process of its own: GStreamer's, fed with clips that are kept in memory and play for ever.

Run by the system's Python, whose `gi` comes from Debian (`python3-gi`, `gir1.2-gst-rtsp-server-1.0`), so it imports
nothing of ours; `simulations.rtsp` starts it. The only argument is a JSON object:

    {"clips": {"yard": "/path/yard.mp4"}, "mounts": {"/camera-1": ["yard", 0.0]}}

`mounts` maps paths to a clip and the second at which it begins. Clips are H.264 without B-frames. The first line on
standard output is the port. Each line on standard input, `/camera-1 dark`, lets a mount go on with another clip, from
that clip's beginning, without a break in the stream, as if something had happened in front of the lens. The process
ends when standard input does.
"""

import heapq
import json
import sys
import threading
import time
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LAUNCH = (
    "( appsrc name=source is-live=true format=time do-timestamp=true max-bytes=4000000 "
    "caps=video/x-h264,stream-format=byte-stream,alignment=au "
    "! h264parse config-interval=-1 ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)
READ = (
    "filesrc name=file ! qtdemux ! h264parse config-interval=-1 "
    "! video/x-h264,stream-format=byte-stream,alignment=au ! appsink name=sink sync=false"
)


class Clip:
    """The access units of a file, and how many of them there are in a second."""

    def __init__(self, path: str) -> None:
        pipeline = Gst.parse_launch(READ)
        pipeline.get_by_name("file").set_property("location", path)
        sink = pipeline.get_by_name("sink")
        pipeline.set_state(Gst.State.PLAYING)
        self.units: list[Any] = []
        last_ns = 0
        while (sample := sink.emit("pull-sample")) is not None:
            buffer = sample.get_buffer()
            last_ns = max(last_ns, buffer.pts)
            self.units.append(buffer)
        pipeline.set_state(Gst.State.NULL)
        if len(self.units) < 2:
            raise SystemExit(f"{path} gave {len(self.units)} access units of H.264")
        self.period_s = last_ns / 1e9 / (len(self.units) - 1)


class Feed:
    """What a mount plays; `source` is there once somebody has watched."""

    def __init__(self, clip: Clip, second: float) -> None:
        self.clip, self.number = clip, round(second / clip.period_s) % len(clip.units)
        self.source: Any = None
        self._begun = False

    def begin(self, source: Any) -> None:
        """Somebody watches who was nobody before."""
        self.source, self._begun = source, False

    def push(self) -> None:
        """Send the next access unit, the first of all a key frame; unwatched, time goes on all the same."""
        unit = self.clip.units[self.number]
        self.number = (self.number + 1) % len(self.clip.units)
        self._begun = self._begun or not unit.has_flags(Gst.BufferFlags.DELTA_UNIT)
        if self.source is not None and self._begun:
            unit = unit.copy()
            unit.pts = unit.dts = Gst.CLOCK_TIME_NONE  # the time is when it is sent
            self.source.emit("push-buffer", unit)  # refused by a pipeline that has ended: no harm

    def switch(self, clip: Clip) -> None:
        """Go on with another clip."""
        self.clip, self.number = clip, 0


def play(feeds: list[Feed]) -> None:
    """Push each feed's units at its pace; the feeds are spread over a period, as cameras are."""
    began_s = time.monotonic() + 0.1
    due = [(began_s + feed.clip.period_s * n / len(feeds), n) for n, feed in enumerate(feeds)]
    heapq.heapify(due)
    while True:
        at_s, number = due[0]
        time.sleep(max(0.0, at_s - time.monotonic()))
        feeds[number].push()
        heapq.heapreplace(due, (at_s + feeds[number].clip.period_s, number))


def obey(feeds: dict[str, Feed], clips: dict[str, Clip], loop: Any) -> None:
    """Switch clips as the lines of standard input say."""
    for line in sys.stdin:
        mount, clip = line.split()
        feeds[mount].switch(clips[clip])
    loop.quit()


def main() -> None:
    """Serve until standard input ends."""
    plan = json.loads(sys.argv[1])
    Gst.init(None)
    clips = {name: Clip(path) for name, path in plan["clips"].items()}
    feeds = {mount: Feed(clips[clip], second) for mount, (clip, second) in plan["mounts"].items()}
    server = GstRtspServer.RTSPServer()
    threads = GstRtspServer.RTSPThreadPool()
    threads.set_max_threads(-1)  # with one, each viewer waits until the mounts of those before have begun
    server.set_thread_pool(threads)
    server.set_address("127.0.0.1")
    server.set_service("0")
    server.set_backlog(512)  # of the usual 5 the kernel turns a crowd away, to come again seconds later
    for mount, feed in feeds.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(LAUNCH)
        factory.set_shared(True)
        factory.connect("media-configure", configure, feed)
        server.get_mount_points().add_factory(mount, factory)
    server.attach(None)
    loop = GLib.MainLoop()
    threading.Thread(target=play, args=(list(feeds.values()),), daemon=True).start()
    threading.Thread(target=obey, args=(feeds, clips, loop), daemon=True).start()
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    loop.run()


def configure(_factory: Any, media: Any, feed: Feed) -> None:
    """A mount's pipeline was made, because somebody watches."""
    feed.begin(media.get_element().get_by_name("source"))


if __name__ == "__main__":
    main()

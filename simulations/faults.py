"""A bad network between a camera and its gateway: a TCP proxy that stalls, cuts, lies, or damages on command.

Stands in front of a real RTSP server (video interleaved in the RTSP connection). What it does to bytes from server to
client:

- `NONE`: hands them on.
- `SILENT`: takes connections and gives nothing, as a camera does whose process hangs, or a half-open link.
- `CUT`: closes every connection at once, as a camera does that has lost its power and whose switch answers.
- `NOISE`: random bytes instead.
- `DAMAGE`: the frames' headers stay, their content is random: video that arrives and cannot be decoded.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from enum import Enum
from typing import Final

CHUNK: Final = 65536
CHECK_S: Final = 0.1
CONNECT_S: Final = 5.0
INTERLEAVED: Final = ord("$")
"""Begins a frame of RTP within an RTSP connection: `$`, channel, length of two bytes (RFC 2326, 10.12)."""
RTP_HEADER: Final = 12


class Fault(Enum):
    """What the proxy does; see the module."""

    NONE = "none"
    SILENT = "silent"
    CUT = "cut"
    NOISE = "noise"
    DAMAGE = "damage"


class FaultProxy:
    """One camera's connection, with a fault that can be set at any time.

    Args:
        port: of the real server on the loopback; `server_port` may be set to another for new connections.
    """

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.fault = Fault.NONE
        self._stopping = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(CHECK_S)
        self.port: int = self._socket.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to listen."""
        self._begin(self._accept)

    def stop(self) -> None:
        """Close everything."""
        self._stopping.set()
        for thread in list(self._threads):
            thread.join(2 * CONNECT_S)
        self._socket.close()

    def url(self, mount: str) -> str:
        """A mount of the server, seen through the proxy."""
        return f"rtsp://127.0.0.1:{self.port}/{mount}"

    def _begin(self, run: object, *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._socket.accept()
            except TimeoutError:
                continue
            if self.fault is Fault.CUT:
                client.close()
            else:
                self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """One connection, until either side closes it."""
        with client, contextlib.suppress(OSError):
            while self.fault is Fault.SILENT and not self._stopping.wait(CHECK_S):
                pass  # accepted, never answered
            with socket.create_connection(("127.0.0.1", self.server_port), CONNECT_S) as server:
                ended = threading.Event()
                up = threading.Thread(target=self._pump_up, args=(client, server, ended), daemon=True)
                up.start()
                try:
                    self._pump_down(server, client, ended)
                finally:
                    ended.set()
                    up.join(CONNECT_S)

    def _pump_up(self, client: socket.socket, server: socket.socket, ended: threading.Event) -> None:
        with contextlib.suppress(OSError):
            for data in self._read(client, ended):
                server.sendall(data)
        ended.set()

    def _pump_down(self, server: socket.socket, client: socket.socket, ended: threading.Event) -> None:
        frames = Frames()
        for data in self._read(server, ended):
            pieces = frames.split(data)
            match self.fault:
                case Fault.NONE:
                    client.sendall(data)
                case Fault.NOISE:
                    client.sendall(os.urandom(len(data)))
                case Fault.DAMAGE:
                    client.sendall(b"".join(pieces))
                case Fault.CUT:
                    return
                case Fault.SILENT:
                    pass

    def _read(self, source: socket.socket, ended: threading.Event) -> Iterator[bytes]:
        """What arrives, until the end of the connection, a cut, or `stop`."""
        source.settimeout(CHECK_S)
        while not ended.is_set() and not self._stopping.is_set() and self.fault is not Fault.CUT:
            try:
                data = source.recv(CHUNK)
            except TimeoutError:
                continue
            if not data:
                return
            yield data


class Frames:
    """Finds the interleaved frames in a server's bytes, and replaces what they carry. Keeps up with what was handed on
    undamaged, so that the fault can begin in the middle of a connection."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = self._skip = 0

    def split(self, data: bytes) -> list[bytes]:
        """The same number of bytes, in order, the content of frames random; RTSP replies stay as they are."""
        pieces: list[bytes] = []
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                kept = min(self._skip, len(piece))
                pieces.append(piece[:kept] + os.urandom(len(piece) - kept))
                self._left -= len(piece)
                self._skip -= kept
                at += len(piece)
            elif self._header or data[at] == INTERLEAVED:
                self._header.append(data[at])
                pieces.append(data[at : at + 1])
                at += 1
                if len(self._header) == 4:
                    self._left = int.from_bytes(self._header[2:], "big")
                    # control packets (odd channels) stay whole
                    self._skip = RTP_HEADER if self._header[1] % 2 == 0 else self._left
                    self._header.clear()
            else:  # an RTSP reply: text, in which no `$` occurs
                end = data.find(b"$", at)
                end = len(data) if end < 0 else end
                pieces.append(data[at:end])
                at = end
        return pieces

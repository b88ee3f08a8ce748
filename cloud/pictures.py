"""Whether a JPEG really decodes, within a bound of pixels, at the pace of the link.

What libjpeg refuses, it refuses for the headers and markers; damage among the entropy-coded bytes gives grey or noise
and only a warning, which OpenCV does not pass on. So a whole decode is paid once for each set of headers (a camera's
pictures share theirs, tables included); after that a picture with the very same headers needs only its markers looked
at: nothing but restarts between the scan's begin and the end of the image. Anything else (progressive, several scans)
is decoded whole every time. Measured at 20 KB: 250 us decoding, 10 us looking (docs/decisions/0046).
"""

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from common.errors import BoundError, WireError

HEADERS_MAX = 4096  # sets of headers remembered ...
HEADER_BYTES_MAX = 4096  # ... each of so many bytes at most: 16 MB
RECENT_MAX = 4  # of a size, tried before the headers are read: cameras of a kind share theirs
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # but stuffed bytes and restarts (ITU-T T.81, B.1.1.5)


@dataclass(frozen=True, slots=True)
class Headers:
    """What stands before the entropy-coded bytes."""

    width: int
    height: int
    frame: int
    """The marker of the frame: baseline, progressive..."""
    scan_at: int
    """Where the first scan's own header begins; 0 when there is none."""


def read_headers(jpeg: bytes) -> Headers:
    """Walk the markers up to the first scan, before anything is decoded (ITU-T T.81, B.1.1.2 and B.2.2).

    Raises:
        WireError: no JPEG, or no frame header.
    """
    if jpeg[:2] != b"\xff\xd8":
        raise WireError("the picture is no JPEG")
    at, width, height, frame = 2, 0, 0, 0
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # any number of fill bytes may precede a marker
            at += 1
            continue
        if marker == _START_OF_SCAN:
            break
        if marker in _START_OF_FRAME and at + 9 <= len(jpeg) and not frame:
            height, width = int.from_bytes(jpeg[at + 5 : at + 7], "big"), int.from_bytes(jpeg[at + 7 : at + 9], "big")
            frame = marker
        at += 2 if marker in _ALONE else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    if not frame:
        raise WireError("the picture has no JPEG frame header")
    is_scan = at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] == _START_OF_SCAN
    return Headers(width, height, frame, at if is_scan else 0)


class PictureCheck:
    """Remembers the headers that have decoded. Any thread may call it."""

    def __init__(self) -> None:
        self._decoded: OrderedDict[bytes, None] = OrderedDict()
        self._recent: OrderedDict[tuple[int, int], tuple[bytes, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self.decodes = 0

    def check(self, jpeg: bytes, width: int, height: int, pixels_max: int) -> None:
        """Its size is read and bounded first; then it must be one that decodes, whole, to that size.

        Raises:
            WireError: says why not.
        """
        for name in self._recent.get((width, height), ()) if width * height <= pixels_max else ():
            if jpeg.startswith(name) and _is_plain(jpeg, len(name)):
                return
        headers = read_headers(jpeg)
        if (headers.width, headers.height) != (width, height):
            raise WireError(f"picture of {headers.width} x {headers.height} pixels is said to be {width} x {height}")
        if width * height > pixels_max:
            raise BoundError(f"picture of {width} x {height} pixels is over the bound of {pixels_max}")
        if not jpeg.endswith(_END_OF_IMAGE):  # a decoder fills what is missing with grey and says nothing
            raise WireError("the picture is cut off")
        name = _name(jpeg, headers)
        if not name or name not in self._decoded:
            self.decodes += 1
            _decode(jpeg, width, height)
        if name:
            self._remember(name, (width, height))

    def _remember(self, name: bytes, size: tuple[int, int]) -> None:
        with self._lock:
            self._decoded[name] = None
            self._decoded.move_to_end(name)
            self._recent[size] = (name, *self._recent.get(size, ())[: RECENT_MAX - 1])
            self._recent.move_to_end(size)
            for remembered in (self._decoded, self._recent):
                while len(remembered) > HEADERS_MAX:
                    remembered.popitem(last=False)


def _name(jpeg: bytes, headers: Headers) -> bytes:
    """The bytes up to the scan's data, when these alone decide whether the picture decodes; else none."""
    if headers.frame not in _SEQUENTIAL or not headers.scan_at:
        return b""
    data_at = headers.scan_at + 2 + int.from_bytes(jpeg[headers.scan_at + 2 : headers.scan_at + 4], "big")
    return jpeg[:data_at] if data_at <= HEADER_BYTES_MAX and _is_plain(jpeg, data_at) else b""


def _is_plain(jpeg: bytes, data_at: int) -> bool:
    """Whether nothing but restarts stands between the scan's data and the end of the image."""
    found = _MARKER_IN_SCAN.search(jpeg, data_at)
    return found is not None and found.start() == len(jpeg) - len(_END_OF_IMAGE) and jpeg.endswith(_END_OF_IMAGE)


def _decode(jpeg: bytes, width: int, height: int) -> None:
    try:
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise WireError(f"the picture does not decode: {error}") from error
    if image is None or image.shape[:2] != (height, width):
        raise WireError("the picture does not decode")


HASH_SIDE = 16
"""256 bits. With the 64 of the library's default, four pairs in a million of different pictures are copies."""


def perceptual_hash(picture: bytes) -> bytes:
    """What stays when a picture is compressed, scaled or brightened: 32 bytes to be compared bit by bit
    (`cloud.curation.folding`).

    Args:
        picture: a file in memory that OpenCV reads.

    Raises:
        WireError: it does not decode.
    """
    import imagehash
    from PIL import Image

    grey = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE) if picture else None
    if grey is None:
        raise WireError("the picture does not decode")
    bits = imagehash.phash(Image.fromarray(grey), hash_size=HASH_SIDE).hash
    return np.packbits(bits).tobytes()

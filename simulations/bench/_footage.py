"""Camera footage for the benchmarks of the edge, built in the run from real clips: main and sub-stream, and its truth.

*Duty*: a yard that is empty most of the time, with a person's visit now and then (`one_by_one_person`), at most 15 %
of the time. *Busy*: a moving belt with bolts on it beside an open fire (`bolt_on_belt`, `fire_house6`), never still.
Idle stretches are the clip's own empty frames played to and fro, and every frame gets fresh sensor noise: an idle
camera is never a repeated picture. Both streams as an IP camera makes them: H.264 with CABAC and loop filter, no
B-frames, a key frame every two seconds; 1080p at 25 fps, and 360p at 5 fps.
"""

import functools
import json
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from simulations.data import find_data

Picture = NDArray[np.uint8]

MAIN_SIZE: Final = (1920, 1080)
SUB_SIZE: Final = (640, 360)
MAIN_FPS: Final = 25
SUB_EVERY: Final = 5
GROUP_S: Final = 2
CODEC_OPTIONS: Final = {"preset": "superfast", "tune": "zerolatency", "x264-params": "threads=1"}
BITS_PER_S: Final = {MAIN_SIZE: 2_000_000, SUB_SIZE: 256_000}
"""What cameras are commonly set to, as variable bit rate with half as much again for a scene that moves."""
NOISE: Final = 2.0
"""Standard deviation of the sensor noise in grey levels: a daylight camera."""
NOISES: Final = 7  # noise pictures taken in turn: fresh ones for each frame would cost more than the encoder
DUTY: Final = 0.14
VISIT_S: Final = (2.5, 3.5)
BOLT_GAP_S: Final = (2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Footage:
    """A camera's two streams, and when something was to be seen."""

    name: str
    main: Path
    sub: Path
    seconds: float
    events: tuple[tuple[float, float], ...]
    """From when to when, in seconds of the clip."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture of a source clip that no footage is made of: what a head is fitted on."""

    image: Picture
    is_event: bool


def find_videos() -> Path:
    """The folder of real clips.

    Raises:
        OperatorError: it is not there; says how to name it.
    """
    return find_data("videos", "one_by_one_person.mp4").parent


@functools.lru_cache(maxsize=3)
def read_clip(path: Path) -> list[Picture]:
    """All pictures of a short clip, uint8 (H, W, 3) BGR; read once, shared, not to be written to."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


class Yard:
    """`one_by_one_person`: six visits; every second one is played, the others are for fitting a head."""

    FPS: Final = 10.0
    MARGIN: Final = 10  # frames around a visit in which somebody is still, or already, partly in the picture

    def __init__(self, videos: Path) -> None:
        self._pictures = read_clip(videos / "one_by_one_person.mp4")
        truth = json.loads((videos / "one_by_one_person.json").read_text())
        self._visits: list[tuple[int, int]] = [(first, last) for first, last in truth["presence"]]
        ends = [0, *(last + 1 + self.MARGIN for _, last in self._visits)]
        begins = [*(first - self.MARGIN for first, _ in self._visits), len(self._pictures) - self.MARGIN]
        self._gaps = [range(end, begin) for end, begin in zip(ends, begins, strict=True) if begin - end > 8]

    def examples(self) -> list[Example]:
        """Pictures of the odd gaps and visits."""
        rows = [Example(self._pictures[n], is_event=False) for gap in self._gaps[1::2] for n in gap[::2]]
        for first, last in self._visits[1::2]:
            rows += [Example(self._pictures[n], is_event=True) for n in range(first + 6, last - 6, 8)]
        return rows

    def play(self, seconds: float, seed: int) -> tuple[list[Picture], tuple[tuple[float, float], ...]]:
        """Pictures at 10 fps and the events among them."""
        chance = random.Random(seed)
        pictures: list[Picture] = []
        events: list[tuple[float, float]] = []
        turn = 0
        while len(pictures) < seconds * self.FPS:
            length = round(chance.uniform(*VISIT_S) * self.FPS)
            gap = self._gaps[::2][turn % len(self._gaps[::2])]
            pictures += self._to_and_fro(gap, round(length * (1 - DUTY) / DUTY / 2))
            first, last = self._visits[::2][turn % len(self._visits[::2])]
            enters, leaves = length * 2 // 3, length - length * 2 // 3  # the middle of the visit is cut out
            events.append((len(pictures) / self.FPS, (len(pictures) + length) / self.FPS))
            pictures += self._pictures[first : first + enters] + self._pictures[last + 1 - leaves : last + 1]
            pictures += self._to_and_fro(gap, round(length * (1 - DUTY) / DUTY / 2))
            turn += 1
        return pictures, tuple(events)

    def _to_and_fro(self, gap: range, count: int) -> list[Picture]:
        there_and_back = [*gap, *reversed(gap)]
        return [self._pictures[there_and_back[n % len(there_and_back)]] for n in range(count)]


class Belt:
    """`bolt_on_belt` beside `fire_house6`: a bolt travels over the belt in frames 1 to 22, the flames never rest."""

    FPS: Final = 12.5
    FIRE_FPS: Final = 29.97
    FIRE: Final = (slice(0, 200), slice(120, 260))  # rows, columns of the flames
    BOLT: Final = range(1, 23)
    EMPTY: Final = range(25, 37)

    def __init__(self, videos: Path) -> None:
        self._belt = read_clip(videos / "bolt_on_belt.mp4")
        height, width = self._belt[0].shape[:2]
        self._fire = [
            np.asarray(cv2.resize(picture[self.FIRE], (width // 3, height)), dtype=np.uint8)
            for picture in read_clip(videos / "fire_house6.mp4")
        ]

    def _frame(self, belt: int, index: int) -> Picture:
        fire = self._fire[round(index / self.FPS * self.FIRE_FPS) % len(self._fire)]
        return np.hstack([self._belt[belt], fire])

    def examples(self) -> list[Example]:
        """Every third picture of the belt, with flames of another time: the clip has one bolt only, so it is both
        fitted and played."""
        rows = [(n, True) for n in self.BOLT[2:-3:3]] + [(n, False) for n in self.EMPTY]
        return [Example(self._frame(n, 200 + 7 * turn), event) for turn in range(4) for n, event in rows]

    def play(self, seconds: float, seed: int) -> tuple[list[Picture], tuple[tuple[float, float], ...]]:
        """Pictures at 12.5 fps and the events among them."""
        chance = random.Random(seed)
        belt: list[int] = []
        events: list[tuple[float, float]] = []
        while len(belt) < seconds * self.FPS:
            gap = round(chance.uniform(*BOLT_GAP_S) * self.FPS)
            belt += [self.EMPTY[n % len(self.EMPTY)] for n in range(gap)]
            events.append((len(belt) / self.FPS, (len(belt) + len(self.BOLT)) / self.FPS))
            belt += list(self.BOLT)
        return [self._frame(number, index) for index, number in enumerate(belt)], tuple(events)


def build_footage(
    videos: Path, folder: Path, *, duty_s: float, busy_s: float, seed: int = 0
) -> tuple[Footage, Footage]:
    """Write both clips, each with its two streams; returns (duty, busy)."""
    folder.mkdir(parents=True, exist_ok=True)
    yard, belt = Yard(videos), Belt(videos)
    with ThreadPoolExecutor(2) as pool:  # libx264 and OpenCV release the interpreter
        duty = pool.submit(_write, "duty", folder, yard.play(duty_s, seed), yard.FPS)
        busy = pool.submit(_write, "busy", folder, belt.play(busy_s, seed), belt.FPS)
        return duty.result(), busy.result()


def cut_footage(footage: Footage, folder: Path, seconds: float) -> Footage:
    """The first `seconds` of a footage, rounded up to a whole group, its packets copied."""
    seconds = min(footage.seconds, -(-seconds // GROUP_S) * GROUP_S)
    main, sub = folder / f"{footage.name}-part-main.mp4", folder / f"{footage.name}-part-sub.mp4"
    for source, target in ((footage.main, main), (footage.sub, sub)):
        with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
            stream = reader.streams.video[0]
            copy = writer.add_stream_from_template(stream)
            for packet in reader.demux(stream):
                if packet.size and packet.pts * packet.time_base < seconds:
                    packet.stream = copy
                    writer.mux(packet)
    events = tuple(event for event in footage.events if event[1] <= seconds)
    return Footage(f"{footage.name}-part", main, sub, seconds, events)


def repeat_footage(footage: Footage, folder: Path, copies: int) -> Footage:
    """A footage several times over, its packets copied: what is paid once then weighs as little as in an hour."""
    if copies == 1:
        return footage
    main, sub = (folder / f"{footage.name}-{copies}-{stream}.mp4" for stream in ("main", "sub"))
    for source, target in ((footage.main, main), (footage.sub, sub)):
        with av.open(str(source)) as first, av.open(str(target), "w") as writer:
            copy = writer.add_stream_from_template(first.streams.video[0])
            for number in range(copies):
                with av.open(str(source)) as reader:
                    for packet in reader.demux(video=0):
                        if packet.size:
                            shift = round(number * footage.seconds / packet.time_base)
                            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                            writer.mux(packet)
    offsets = [number * footage.seconds for number in range(copies)]
    events = tuple((begin + offset, end + offset) for offset in offsets for begin, end in footage.events)
    return Footage(footage.name, main, sub, copies * footage.seconds, events)


def _write(
    name: str, folder: Path, scene: tuple[list[Picture], tuple[tuple[float, float], ...]], fps: float
) -> Footage:
    pictures, events = scene
    main, sub = folder / f"{name}-main.mp4", folder / f"{name}-sub.mp4"
    count = int(len(pictures) / fps * MAIN_FPS)
    chosen = (pictures[min(int(n / MAIN_FPS * fps), len(pictures) - 1)] for n in range(count))
    with _Writer(main, MAIN_SIZE, MAIN_FPS) as to_main, _Writer(sub, SUB_SIZE, MAIN_FPS // SUB_EVERY) as to_sub:
        for index, frame in enumerate(_with_noise(chosen)):
            to_main.write(frame)
            if index % SUB_EVERY == 0:
                to_sub.write(frame)
    return Footage(name, main, sub, count / MAIN_FPS, events)


def write_stream(path: Path, size: tuple[int, int], fps: int, pictures: list[Picture], pictures_fps: float) -> None:
    """Write one stream of a camera alone."""
    count = int(len(pictures) / pictures_fps * fps)
    chosen = (pictures[min(int(n / fps * pictures_fps), len(pictures) - 1)] for n in range(count))
    with _Writer(path, size, fps) as writer:
        for frame in _with_noise(chosen):
            writer.write(frame)


def _with_noise(pictures: Iterable[Picture]) -> Iterator[av.VideoFrame]:
    """Frames of the main stream, YUV 4:2:0; the noise is in the luma, where eyes, codecs and gates see it."""
    width, height = MAIN_SIZE
    dice = np.random.default_rng(0)
    offset = 20  # noise pictures are stored as uint8 around it
    noises = [np.clip(dice.normal(offset, NOISE, (height, width)), 0, 40).astype(np.uint8) for _ in range(NOISES)]
    last: Picture | None = None
    for index, picture in enumerate(pictures):
        if picture is not last:
            last, large = picture, cv2.resize(picture, MAIN_SIZE, interpolation=cv2.INTER_LINEAR)
            planes = cv2.cvtColor(large, cv2.COLOR_BGR2YUV_I420)
            luma = planes[:height].copy()
        planes[:height] = cv2.subtract(cv2.add(luma, noises[index % NOISES]), float(offset))
        yield av.VideoFrame.from_ndarray(planes, format="yuv420p")


class _Writer:
    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        self._container = av.open(str(path), "w")
        rate = BITS_PER_S[size]
        options = CODEC_OPTIONS | {"b": str(rate), "maxrate": str(rate * 3 // 2), "bufsize": str(rate * 2)}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = GROUP_S * fps
        self._size, self._period, self._count = size, Fraction(1, fps), 0

    def __enter__(self) -> "_Writer":
        return self

    def write(self, frame: av.VideoFrame) -> None:
        if (frame.width, frame.height) != self._size:
            frame = frame.reformat(*self._size, interpolation="AREA", threads=1)
        frame.pts, frame.time_base = self._count, self._period
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *_: object) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()

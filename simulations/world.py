"""Worlds the demo can run in: which sites there are, what their cameras play, and the truth that only the oracle knows.

Three of them: generated belts (the default), a folder of real pictures, any video files.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from cloud.learning.datasets import Item, read_folder
from common.errors import OperatorError
from common.pictures import read_picture
from simulations.belts import BeltCamera, Truth, still_frames
from simulations.clips import read_truth, write_clip
from simulations.looks import SCENARIOS, SITES

Picture = NDArray[np.uint8]
LABEL_SHARE, LABELS_MIN = 0.1, 4  # of a scene's pictures a person looks at a tenth, but at a few at least
FOLDER_EPOCH_NS = 1_700_000_000 * 10**9  # where edge.camera begins the time of a folder of pictures


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """One [[cameras]] table of a gateway."""

    id: str
    source: Path
    looks_per_s: float
    paced: bool
    loop: bool
    picture_fps: float = 5.0


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One site with one gateway; `seen` says whether the first release was trained there."""

    name: str
    seen: bool
    cameras: tuple[CameraPlan, ...]


Exclude = Callable[[str, int], bool]
"""(camera, captured_at_ns) -> was this very frame labelled? Then it does not count in the evaluation."""


class World(Protocol):
    """What the demo needs to know of the mines it plays in."""

    sites: tuple[SitePlan, ...]
    datasets: dict[str, list[Item]]
    """Per scenario, what the first release is trained on."""
    label_budget: dict[str, int] | None
    """Samples that may be labelled per site, over the whole run; None is without limit."""

    def truth(self, site: str, camera: str, captured_at_ns: int, scenario: str) -> str | None: ...

    def evaluation(self, site: str, exclude: Exclude) -> Iterator[tuple[Picture, Truth]]: ...


def _write_stills(folder: Path, site: str, camera: int, seed: int, count: int) -> list[tuple[Path, Truth]]:
    """Pictures of a generated camera on disk, with their truth."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, (picture, truth) in enumerate(zip(*still_frames(site, camera, seed, count), strict=True)):
        path = folder / f"{site}-{camera}-{number:04d}.png"
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        found.append((path, truth))
    return found


def _write_clip(path: Path, site: str, camera: int, seed: int, seconds: float) -> None:
    write_clip(path, BeltCamera(site, camera, seed), seconds)


@dataclass
class BeltWorld:
    """Generated belts: deterministic for a seed; the unseen sites differ in light, haze, tint and coarseness."""

    folder: Path
    seed: int = 1
    seconds: float = 60.0
    stills: int = 160
    site_names: tuple[str, ...] = ("north-drift", "south-drift", "east-panel", "west-shaft")
    sites: tuple[SitePlan, ...] = ()
    datasets: dict[str, list[Item]] = field(default_factory=dict)
    label_budget: dict[str, int] | None = None
    _evaluation: dict[str, list[tuple[Path, Truth]]] = field(default_factory=dict)
    _truths: dict[tuple[str, str], tuple[int, dict[int, Truth]]] = field(default_factory=dict)

    def build(self, progress: Callable[[str], None] = lambda _: None) -> "BeltWorld":
        """Make clips and stills with two processes; `progress` gets a word per finished file."""
        train: dict[str, list[tuple[Path, Truth]]] = {}
        with ProcessPoolExecutor(2) as pool:
            clips: list[tuple[str, int, Future[None]]] = []
            stills: list[tuple[dict[str, list[tuple[Path, Truth]]], str, Future[list[tuple[Path, Truth]]]]] = []
            for site in self.site_names:
                for camera in (1, 2):
                    clip = pool.submit(
                        _write_clip, self._clip(site, camera), site, camera, self.seed + 1000, self.seconds
                    )
                    clips.append((site, camera, clip))
                    args = (self.folder / "evaluation", site, camera, self.seed + 2000, self.stills // 2)
                    stills.append((self._evaluation, site, pool.submit(_write_stills, *args)))
                    if SITES[site].seen:
                        args = (self.folder / "training", site, camera, self.seed, self.stills)
                        stills.append((train, site, pool.submit(_write_stills, *args)))
            for where, site, written in stills:
                where.setdefault(site, []).extend(written.result())
                progress(f"pictures of {site}")
            for site, camera, clip in clips:
                clip.result()
                progress(f"clip of {site}, camera {camera}")
                path = self._clip(site, camera)
                self._truths[site, f"belt-{camera}"] = path.stat().st_mtime_ns, read_truth(path)
        self.datasets = {
            scenario: [
                Item(path, label, site)
                for site, pictures in train.items()
                for path, truth in pictures
                if (label := truth[scenario]) is not None
            ]
            for scenario in SCENARIOS
        }
        self.sites = tuple(SitePlan(site, SITES[site].seen, self._cameras(site)) for site in self.site_names)
        return self

    def _clip(self, site: str, camera: int) -> Path:
        return self.folder / "clips" / f"{site}-belt-{camera}.mp4"

    def _cameras(self, site: str) -> tuple[CameraPlan, ...]:
        return tuple(CameraPlan(f"belt-{n}", self._clip(site, n), 5.0, paced=True, loop=True) for n in (1, 2))

    def truth(self, site: str, camera: str, captured_at_ns: int, scenario: str) -> str | None:
        started_ns, truths = self._truths[site, camera]
        fps = 10
        return truths[round((captured_at_ns - started_ns) / 1e9 * fps)][scenario]

    def evaluation(self, site: str, exclude: Exclude) -> Iterator[tuple[Picture, Truth]]:
        del exclude  # other pictures than those of the clips
        for path, truth in self._evaluation[site]:
            yield read_picture(path), truth


@dataclass
class FolderWorld:
    """Real pictures in the layout of belt-defects: a scene is a site with one camera, `split` says which are seen.

    Gateways stand at the unseen scenes with the most pictures of at least two classes, and at two seen scenes. They
    play what the training did not have; a tenth of it may be labelled, evaluation is on the rest.
    """

    data: Path
    folder: Path
    scenario: str = "belt-defect"
    unseen_sites_max: int = 6
    sites: tuple[SitePlan, ...] = ()
    datasets: dict[str, list[Item]] = field(default_factory=dict)
    label_budget: dict[str, int] | None = field(default_factory=dict)
    _frames: dict[str, list[Item]] = field(default_factory=dict)

    def build(self, progress: Callable[[str], None] = lambda _: None) -> "FolderWorld":
        """Lay out one folder per camera, with the pictures in order of name.

        Raises:
            OperatorError: no manifest.csv with a `split`, or no scene to meet afresh.
        """
        manifest = self.data / "manifest.csv"
        if not manifest.is_file():
            raise OperatorError(f"there is no {manifest}", "Columns: file, class, scene, split (train or test).")
        with manifest.open(newline="", encoding="utf-8") as file:
            if "split" not in (csv.DictReader(file).fieldnames or ()):
                raise OperatorError(f"{manifest} has no column split", "Mark each row train or test.")
        train, test = read_folder(self.data, "train"), read_folder(self.data, "test")
        seen = self._largest(train, 2)
        held = {item.path for site in seen for item in seen[site][::3]}
        self.datasets = {self.scenario: [item for item in train if item.path not in held]}
        plans = []
        for site, items, is_seen in [
            *((site, [i for i in items if i.path in held], True) for site, items in seen.items()),
            *((site, items, False) for site, items in self._largest(test, self.unseen_sites_max).items()),
        ]:
            self._frames[site] = items
            self.label_budget = {**(self.label_budget or {}), site: max(LABELS_MIN, int(len(items) * LABEL_SHARE))}
            camera = self.folder / "cameras" / site
            shutil.rmtree(camera, ignore_errors=True)
            camera.mkdir(parents=True)
            for number, item in enumerate(items):
                shutil.copy(item.path, camera / f"{number:05d}{item.path.suffix}")
            plan = CameraPlan("camera-1", camera, 5.0, paced=True, loop=True, picture_fps=5.0)
            plans.append(SitePlan(site, is_seen, (plan,)))
            progress(f"camera of {site}")
        self.sites = tuple(plans)
        return self

    @staticmethod
    def _largest(items: list[Item], count: int) -> dict[str, list[Item]]:
        by_site: dict[str, list[Item]] = {}
        for item in items:
            by_site.setdefault(item.site, []).append(item)
        mixed = {site: own for site, own in by_site.items() if len({item.label for item in own}) > 1}
        if not mixed:
            raise OperatorError("no scene has pictures of two classes", "The demo needs scenes with something to tell.")
        return dict(sorted(mixed.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:count])

    def truth(self, site: str, camera: str, captured_at_ns: int, scenario: str) -> str | None:
        del camera, scenario
        return self._frames[site][round((captured_at_ns - FOLDER_EPOCH_NS) / 1e9 * 5.0)].label

    def evaluation(self, site: str, exclude: Exclude) -> Iterator[tuple[Picture, Truth]]:
        for number, item in enumerate(self._frames[site]):
            if not exclude("camera-1", FOLDER_EPOCH_NS + int(number / 5.0 * 1e9)):
                yield read_picture(item.path), {self.scenario: item.label}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is in the picture from one frame to another, both included."""

    kind: str
    first_frame: int
    last_frame: int


def read_events(truth: Path) -> list[Event]:
    """Events of a video's JSON, in any of three layouts; none when it has neither.

    `labels`: a list of `{kind, first_frame, last_frame}`; `presence`: a list of `[first_frame, last_frame]`; `frames`:
    boxes by frame number. `kind` of the whole file names what the latter two show.

    Raises:
        OperatorError: the file is no JSON object, or an event lacks a field.
    """
    try:
        values = json.loads(truth.read_text(encoding="utf-8"))
        kind = str(values.get("kind", "present")).replace("_", "-")
        if "labels" in values:
            return [
                Event(str(e["kind"]).replace("_", "-"), int(e["first_frame"]), int(e["last_frame"]))
                for e in values["labels"]
            ]
        if "presence" in values:
            return [Event(kind, int(first), int(last)) for first, last in values["presence"]]
        boxes = values.get("frames", {})
        if isinstance(boxes, dict):
            return [Event(kind, int(number), int(number)) for number, found in boxes.items() if found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{truth} is not a list of events: {error!r}", "Mend or remove it.") from error
    return []


@dataclass
class VideoWorld:
    """Any videos, one site each. With a `.json` of events beside a video the oracle can label; without, a person can.

    A kind of event that no dataset has is a new class. See `read_events` for the layouts of the JSON.
    """

    videos: list[Path]
    folder: Path
    seed: int = 1
    scenario: str = "foreign-object"
    sites: tuple[SitePlan, ...] = ()
    datasets: dict[str, list[Item]] = field(default_factory=dict)
    label_budget: dict[str, int] | None = None
    _events: dict[str, list[Event]] = field(default_factory=dict)
    _videos: dict[str, Path] = field(default_factory=dict)

    def build(self, progress: Callable[[str], None] = lambda _: None) -> "VideoWorld":
        """Check that each video opens.

        Raises:
            OperatorError: a video is missing or cannot be decoded; names the file.
        """
        pictures = _write_stills(self.folder / "training", "north-drift", 1, self.seed, 160)
        self.datasets = {
            self.scenario: [Item(p, t, "north-drift") for p, truth in pictures if (t := truth[self.scenario])]
        }
        plans = []
        for number, video in enumerate(self.videos, start=1):
            _probe(video)
            site = f"video-{number}"
            truth = video.with_suffix(".json")
            self._videos[site] = video
            if truth.is_file() and (events := read_events(truth)):
                self._events[site] = events
            plan = CameraPlan("camera-1", video.resolve(), 5.0, paced=True, loop=True)
            plans.append(SitePlan(site, False, (plan,)))
            progress(f"video {video.name}")
        self.sites = tuple(plans)
        return self

    def truth(self, site: str, camera: str, captured_at_ns: int, scenario: str) -> str | None:
        del camera, scenario
        if site not in self._events:
            return None
        rate = _probe(self._videos[site])
        return self._label(site, round((captured_at_ns - self._videos[site].stat().st_mtime_ns) / 1e9 * rate))

    def _label(self, site: str, frame: int) -> str:
        return next((e.kind for e in self._events[site] if e.first_frame <= frame <= e.last_frame), "normal")

    def evaluation(self, site: str, exclude: Exclude) -> Iterator[tuple[Picture, Truth]]:
        if site not in self._events:
            return
        started_ns = self._videos[site].stat().st_mtime_ns
        with av.open(str(self._videos[site])) as container:
            for number, frame in enumerate(container.decode(video=0)):
                at_ns = started_ns + int((frame.time or 0.0) * 1e9)
                if number % 3 == 0 and not exclude("camera-1", at_ns):
                    yield frame.to_ndarray(format="bgr24"), {self.scenario: self._label(site, number)}


def _probe(video: Path) -> float:
    """Frames per second of a video that opens and decodes."""
    try:
        with av.open(str(video)) as container:
            next(container.decode(video=0))
            return float(container.streams.video[0].average_rate or 25)
    except (av.error.FFmpegError, OSError, StopIteration, IndexError) as error:
        raise OperatorError(f"cannot play {video}: {error}", "Give a video file that ffmpeg can decode.") from error

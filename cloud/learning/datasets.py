"""Datasets of the centre: labelled pictures that the group already has, embedded once and kept as arrays.

Layouts: a folder with `manifest.csv` (columns `file`, `class`, and `scene` or `site`; optionally `split`), or a folder
with one sub-folder of pictures per class. A fifth is the gold set: never trained on, the same on every machine. Where
pictures come in scenes, whole scenes are gold, chosen by their names: of two pictures of one scene, one learnt from and
one judged by, the second measures memory. Otherwise pictures are, chosen by content.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cloud.curation.rows import HASH_BYTES
from cloud.learning.candidates import Labelled
from cloud.pictures import perceptual_hash
from common.backbone import Backbone
from common.errors import OperatorError
from common.files import write_atomically
from common.ids import check_name
from common.pictures import read_picture
from common.statistics import Statistics

PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}
GOLD_SHARE = 0.2
SCENES_MIN = 10  # with fewer, a scene is too much to give away: gold is chosen by picture


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled picture."""

    path: Path
    label: str
    site: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Embedded pictures of one scenario on one backbone."""

    name: str
    scenario: str
    backbone: str
    classes: tuple[str, ...]
    embeddings: NDArray[np.float32]
    labels: tuple[str, ...]
    sites: tuple[str, ...]
    ids: tuple[bytes, ...]
    is_gold: NDArray[np.bool_]
    hashes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, HASH_BYTES), np.uint8))
    """Perceptual hashes (n, 32); none of a dataset that was added before there were any."""
    files: tuple[str, ...] = ()
    """Where the pictures lay when they were added; empty as `hashes`."""

    @property
    def gold(self) -> Labelled:
        return Labelled(self.ids, self.embeddings, self.labels).pick(self.is_gold)

    @property
    def learnt_from(self) -> frozenset[bytes]:
        """Ids of everything but the gold set."""
        return frozenset(name for name, gold in zip(self.ids, self.is_gold.tolist(), strict=True) if not gold)

    def without(self, sites: Collection[str]) -> "Dataset":
        """The pictures of the other sites."""
        rows = np.array([row for row, site in enumerate(self.sites) if site not in sites], dtype=np.int64)
        return self if len(rows) == len(self.sites) else self.pick(rows)

    def pick(self, rows: NDArray[np.integer]) -> "Dataset":
        """Some of the pictures, in this order."""
        return Dataset(
            self.name,
            self.scenario,
            self.backbone,
            self.classes,
            self.embeddings[rows],
            tuple(self.labels[row] for row in rows),
            tuple(self.sites[row] for row in rows),
            tuple(self.ids[row] for row in rows),
            self.is_gold[rows],
            self.hashes[rows] if len(self.hashes) else self.hashes,
            tuple(self.files[row] for row in rows) if self.files else (),
        )

    def picture(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row, from where it lay, uint8 (H, W, 3) BGR.

        Raises:
            OperatorError: it is not there any more, or another one is.
        """
        path = Path(self.files[row]) if self.files else None
        if path is None or not path.is_file() or picture_id(path.read_bytes()) != self.ids[row]:
            what = f"is not at {path} any more" if path else "was added before their places were noted"
            raise OperatorError(
                f"a picture of dataset {self.name} {what}",
                f"Add it again: `headframe cloud dataset add FOLDER --name {self.name} --scenario {self.scenario}`.",
            )
        return read_picture(path)

    def statistics(self, classes: Sequence[str]) -> Statistics:
        """Of everything but the gold set."""
        train = Labelled(self.ids, self.embeddings, self.labels).pick(~self.is_gold)
        return Statistics.of(classes, train.embeddings, train.labels)


def read_folder(folder: Path, split: str | None = None) -> list[Item]:
    """List the labelled pictures of a folder.

    Raises:
        OperatorError: no folder, no pictures, or a row of the manifest that names a missing file or column.
    """
    if not folder.is_dir():
        raise OperatorError(f"there is no folder {folder}", "Give a folder with manifest.csv or one folder per class.")
    manifest = folder / "manifest.csv"
    items = list(_from_manifest(manifest, split) if manifest.is_file() else _from_classes(folder))
    if not items:
        raise OperatorError(f"{folder} holds no labelled pictures", "See docs/cloud.md, 'Add a dataset'.")
    return items


def _from_manifest(manifest: Path, split: str | None) -> Iterator[Item]:
    with manifest.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            site = row.get("site") or row.get("scene")
            if not row.get("file") or not row.get("class") or not site:
                raise OperatorError(f"{manifest}, line {line}: needs file, class and scene (or site)", "Mend the row.")
            if split and row.get("split") != split:
                continue
            path = manifest.parent / row["file"]
            if not path.is_file():
                raise OperatorError(f"{manifest}, line {line}: there is no file {path}", "Mend the row.")
            yield Item(path, row["class"], site)


def _from_classes(folder: Path) -> Iterator[Item]:
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in PICTURES:
            yield Item(path, path.parent.name, folder.name)


def read_as_jpeg(path: Path) -> bytes | None:
    """A picture for a browser; None where it is not there any more."""
    if not path.is_file():
        return None
    data: bytes = cv2.imencode(".jpg", read_picture(path))[1].tobytes()
    return data


def choose_gold(ids: Sequence[bytes], labels: Sequence[str], scenes: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures are never trained on (n,).

    A scene's own name decides, so a scene that is gold stays gold when others are added. A class that has two scenes is
    on both sides: where chance put it on one, the first or last scene by the same order changes sides.
    """
    if len(set(scenes)) < SCENES_MIN:
        return np.array([key[0] < 256 * GOLD_SHARE for key in ids], dtype=bool)
    order = {name: hashlib.blake2b(name.encode(), digest_size=8).digest() for name in set(scenes)}
    chosen = {name for name, key in order.items() if key[0] < 256 * GOLD_SHARE}
    for label in sorted(set(labels)):
        own = sorted({s for s, given in zip(scenes, labels, strict=True) if given == label}, key=order.__getitem__)
        if len(own) > 1 and not chosen & set(own):
            chosen.add(own[0])
        elif len(own) > 1 and chosen >= set(own):
            chosen.remove(own[-1])
    return np.array([name in chosen for name in scenes], dtype=bool)


def order_classes(labels: Iterable[str]) -> list[str]:
    """Each once, `normal` first where there is one."""
    return sorted(set(labels), key=lambda label: (label != "normal", label))


def picture_id(data: bytes) -> bytes:
    """What a picture of these bytes is called, in whatever dataset or partition it is."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Catalogue:
    """The datasets in a folder of the centre, one `.npz` each (arrays only, no pickle), and one more for each backbone
    that came after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        name: str,
        scenario: str,
        items: Sequence[Item],
        backbone: Backbone,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Dataset:
        """Embed and store a dataset; one of the same name and scenario is replaced.

        Classes are in order of first appearance, with `normal` first where there is one.
        """
        check_name("dataset", name)
        check_name("scenario", scenario)
        classes = order_classes(item.label for item in items)
        embeddings, ids = np.zeros((len(items), backbone.dimension), np.float32), []
        hashes = np.zeros((len(items), HASH_BYTES), np.uint8)
        for row, item in enumerate(items):
            embeddings[row] = backbone.embed(read_picture(item.path))
            data = item.path.read_bytes()
            hashes[row] = np.frombuffer(perceptual_hash(data), np.uint8)
            ids.append(picture_id(data))
            progress(row + 1)
        labels, sites = tuple(item.label for item in items), tuple(item.site for item in items)
        gold = choose_gold(ids, labels, sites)
        files = tuple(str(item.path.resolve()) for item in items)
        parts = embeddings, labels, sites, tuple(ids), gold, hashes, files
        dataset = Dataset(name, scenario, backbone.hash, tuple(classes), *parts)
        self.put(dataset)
        return dataset

    def put(self, dataset: Dataset) -> None:
        """Keep a dataset whose pictures are embedded already; one of the same name and scenario is replaced."""
        self._write(dataset)
        for path in self.folder.glob(f"{dataset.name}.{dataset.scenario}.*.npz"):  # of other pictures
            path.unlink()

    def lacking(self, backbone: str) -> list[Dataset]:
        """Datasets that are there, but not on this backbone."""
        found = self.datasets()
        there = {(dataset.name, dataset.scenario) for dataset in found if dataset.backbone == backbone}
        first = {(dataset.name, dataset.scenario): dataset for dataset in reversed(found)}
        return [dataset for key, dataset in sorted(first.items()) if key not in there]

    def embed_again(
        self, dataset: Dataset, backbone: Backbone, progress: Callable[[int], None] = lambda _: None
    ) -> Dataset:
        """The same pictures, labels and gold on another backbone, beside the dataset.

        Raises:
            OperatorError: a picture is not where it was.
        """
        embeddings = np.zeros((len(dataset.ids), backbone.dimension), np.float32)
        for row in range(len(dataset.ids)):
            embeddings[row] = backbone.embed(dataset.picture(row))
            progress(row + 1)
        made = replace(dataset, backbone=backbone.hash, embeddings=embeddings)
        self._write(made, f".{backbone.hash[:16]}")
        return made

    def forget(self, backbone: str) -> None:
        """Remove what `embed_again` made for a backbone."""
        for path in self.folder.glob(f"*.{backbone[:16]}.npz"):
            path.unlink()

    def _write(self, dataset: Dataset, ending: str = "") -> None:
        buffer = io.BytesIO()
        header = {"name": dataset.name, "scenario": dataset.scenario, "backbone": dataset.backbone}
        np.savez(
            buffer,
            header=np.array(json.dumps(header)),
            classes=np.array(dataset.classes),
            embeddings=dataset.embeddings,
            labels=np.array(dataset.labels),
            sites=np.array(dataset.sites),
            ids=np.frombuffer(b"".join(dataset.ids), np.uint8).reshape(-1, 16),
            is_gold=dataset.is_gold,
            hashes=dataset.hashes,
            files=np.array(dataset.files, dtype=np.str_),
        )
        write_atomically(self.folder / f"{dataset.name}.{dataset.scenario}{ending}.npz", buffer.getvalue())

    def datasets(self, scenario: str | None = None) -> list[Dataset]:
        """All datasets, or those of one scenario, by name."""
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                if scenario and header["scenario"] != scenario:
                    continue
                found.append(
                    Dataset(
                        **header,
                        classes=tuple(str(c) for c in arrays["classes"]),
                        embeddings=arrays["embeddings"],
                        labels=tuple(str(label) for label in arrays["labels"]),
                        sites=tuple(str(site) for site in arrays["sites"]),
                        ids=tuple(row.tobytes() for row in arrays["ids"]),
                        is_gold=arrays["is_gold"],
                        **_known_since(arrays),
                    )
                )
        return found

    def scenarios(self) -> list[str]:
        """Names of the scenarios that have a dataset."""
        return sorted({dataset.scenario for dataset in self.datasets()})


def _known_since(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What files of before do not have."""
    if "hashes" not in arrays:
        return {}
    return {"hashes": arrays["hashes"], "files": tuple(str(file) for file in arrays["files"])}

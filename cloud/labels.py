"""Labels in and out as files: CSV (one row a sample) and COCO (an annotation a sample, no boxes).

Decides what a right row is; the store decides what a right label is. A file is imported whole or not at all.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.store import Store, StoredSample
from cloud.store.samples import check_label
from common.errors import OperatorError
from common.files import READABLE, write_atomically

COLUMNS = ("sample_id", "scenario", "label")


@dataclass(frozen=True, slots=True)
class _Row:
    sample_id: bytes
    label: str
    where: str
    """File and line, for the person who mends it."""


def export_csv(store: Store, scenario: str, file: Path) -> int:
    """Write sample_id, scenario, label, site_id, camera_id, captured_at_ns; returns the number of rows."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([*COLUMNS, "site_id", "camera_id", "captured_at_ns"])
    samples = _labelled(store, scenario)
    for sample in samples:
        row = (sample.sample_id.hex(), scenario, sample.labels[scenario])
        writer.writerow([*row, sample.site_id, sample.camera_id, sample.captured_at_ns])
    write_atomically(file, buffer.getvalue().encode(), READABLE)
    return len(samples)


def import_csv(store: Store, scenario: str, file: Path, author: str, at_ns: int) -> int:
    """Read rows of sample_id, label (and scenario, which must fit when given); all or nothing.

    Returns:
        How many labels were new.

    Raises:
        OperatorError: names the file and line of the first wrong row; nothing was imported.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"sample_id", "label"} - set(reader.fieldnames or ())
            if missing:
                raise OperatorError(
                    f"{file}, line 1: has no column {', '.join(sorted(missing))}", "Name the columns in the first line."
                )
            rows = [_row(row, scenario, f"{file}, line {reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OperatorError(f"cannot read {file}: {error}", "Give a CSV file in UTF-8.") from error
    return _store(store, scenario, rows, author, at_ns)


def export_coco(store: Store, scenario: str, file: Path) -> int:
    """Write images, categories and one annotation per label; the image id is the sample id in hex."""
    samples = _labelled(store, scenario)
    categories = {name: number for number, name in enumerate(sorted({s.labels[scenario] for s in samples}), start=1)}
    images, annotations = [], []
    for number, sample in enumerate(samples, start=1):
        name = sample.sample_id.hex()
        size = {"width": sample.width_px, "height": sample.height_px}
        images.append({"id": name, "file_name": f"{name}.jpg", **size, "site_id": sample.site_id})
        annotations.append({"id": number, "image_id": name, "category_id": categories[sample.labels[scenario]]})
    document = {
        "info": {"scenario": scenario},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_atomically(file, json.dumps(document, ensure_ascii=False, indent=1).encode(), READABLE)
    return len(annotations)


def import_coco(store: Store, scenario: str, file: Path, author: str, at_ns: int) -> int:
    """Read annotations whose image has a file name that is a sample id; all or nothing.

    Returns:
        How many labels were new.

    Raises:
        OperatorError: names the file and the annotation that is wrong; nothing was imported.
    """
    try:
        document: dict[str, Any] = json.loads(file.read_bytes())
        categories = {item["id"]: str(item["name"]) for item in document["categories"]}
        images = {item["id"]: Path(str(item["file_name"])).stem for item in document["images"]}
        annotations = list(document["annotations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(
            f"{file} is no COCO file ({error!r})", "It needs images, annotations, categories."
        ) from error
    rows = []
    for number, annotation in enumerate(annotations, start=1):
        where = f"{file}, annotation {number}"
        try:
            row = {"sample_id": images[annotation["image_id"]], "label": categories[annotation["category_id"]]}
        except (KeyError, TypeError) as error:
            raise OperatorError(f"{where}: unknown image or category {error}", "Mend the file.") from error
        rows.append(_row(row, scenario, where))
    return _store(store, scenario, rows, author, at_ns)


def _labelled(store: Store, scenario: str) -> list[StoredSample]:
    """In order of id, so that the same labels give the same file."""
    found = store.samples(scenario=scenario, labelled=True, limit=None)
    return sorted(found, key=lambda sample: sample.sample_id)


def _row(row: dict[str, Any], scenario: str, where: str) -> _Row:
    label = (row.get("label") or "").strip()
    if (row.get("scenario") or scenario) != scenario:
        raise OperatorError(f"{where}: is of scenario {row['scenario']!r}, not {scenario!r}", "Give its --scenario.")
    try:
        name = bytes.fromhex(row.get("sample_id") or "")
    except ValueError:
        name = b""
    if not name or not label:
        raise OperatorError(f"{where}: needs a sample_id in hex and a label", "Mend the row.")
    try:
        check_label(scenario, label)
    except OperatorError as error:
        raise OperatorError(f"{where}: {error.message}", error.hint) from error
    return _Row(name, label, where)


def _store(store: Store, scenario: str, rows: list[_Row], author: str, at_ns: int) -> int:
    known = store.known_ids([row.sample_id for row in rows])
    unknown = next((row for row in rows if row.sample_id not in known), None)
    if unknown:
        raise OperatorError(
            f"{unknown.where}: there is no sample {unknown.sample_id.hex()}",
            "Nothing was imported; labels refer to uploaded samples.",
        )
    return store.add_labels([(row.sample_id, scenario, row.label) for row in rows], author, at_ns)

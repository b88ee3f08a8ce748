"""Labels in and out as files: CSV (one row a sample) and COCO (an annotation a sample, no boxes)."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from cloud.store import Store
from common.errors import OperatorError
from common.files import write_atomically

COLUMNS = ("sample_id", "scenario", "label")


def export_csv(store: Store, scenario: str, file: Path) -> int:
    """Write sample_id, scenario, label, site_id, camera_id, captured_at_ns; returns the number of rows."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([*COLUMNS, "site_id", "camera_id", "captured_at_ns"])
    labels = sorted(store.labels(scenario).items())
    for name, label in labels:
        sample = store.sample(name)
        if sample:
            writer.writerow([name.hex(), scenario, label, sample.site_id, sample.camera_id, sample.captured_at_ns])
    write_atomically(file, buffer.getvalue().encode())
    return len(labels)


def import_csv(store: Store, scenario: str, file: Path, author: str, at_ns: int) -> int:
    """Read rows of sample_id, label (and scenario, which must fit when given); all or nothing.

    Returns:
        How many labels were new.

    Raises:
        OperatorError: names the file and line of the first wrong row; nothing was imported.
    """
    rows: list[tuple[bytes, str, str]] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            for line, row in enumerate(csv.DictReader(stream), start=2):
                rows.append(_row(row, scenario, f"{file}, line {line}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OperatorError(f"cannot read {file}: {error}", "Give a CSV file in UTF-8.") from error
    return _store(store, rows, author, at_ns, file)


def export_coco(store: Store, scenario: str, file: Path) -> int:
    """Write images, categories and one annotation per label; the image id is the sample id in hex."""
    labels = sorted(store.labels(scenario).items())
    names = sorted({label for _, label in labels})
    images, annotations = [], []
    for number, (name, label) in enumerate(labels, start=1):
        sample = store.sample(name)
        if sample is None:
            continue
        size = {"width": sample.width_px, "height": sample.height_px}
        images.append({"id": name.hex(), "file_name": f"{name.hex()}.jpg", **size, "site_id": sample.site_id})
        annotations.append({"id": number, "image_id": name.hex(), "category_id": names.index(label) + 1})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    document = {
        "info": {"scenario": scenario}, "images": images, "annotations": annotations, "categories": categories,
    }  # fmt: skip
    write_atomically(file, json.dumps(document, ensure_ascii=False, indent=1).encode())
    return len(annotations)


def import_coco(store: Store, scenario: str, file: Path, author: str, at_ns: int) -> int:
    """Read annotations whose image is a sample (by id, or by a file name that is the id); all or nothing.

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
    return _store(store, rows, author, at_ns, file)


def _row(row: dict[str, Any], scenario: str, where: str) -> tuple[bytes, str, str]:
    label = (row.get("label") or "").strip()
    if (row.get("scenario") or scenario) != scenario:
        raise OperatorError(f"{where}: is of scenario {row['scenario']!r}, not {scenario!r}", "Give its --scenario.")
    try:
        name = bytes.fromhex(row.get("sample_id") or "")
    except ValueError:
        name = b""
    if not name or not label:
        raise OperatorError(f"{where}: needs a sample_id in hex and a label", "Mend the row.")
    return name, scenario, label


def _store(store: Store, rows: list[tuple[bytes, str, str]], author: str, at_ns: int, file: Path) -> int:
    try:
        return store.add_labels(rows, author, at_ns)
    except OperatorError as error:
        raise OperatorError(f"{file}: {error.message}", "Nothing was imported; remove or mend that row.") from error

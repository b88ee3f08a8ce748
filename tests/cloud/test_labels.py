"""Labels in and out as files: whole or not at all, and the person is told which row to mend."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.labels import export_coco, export_csv, import_coco, import_csv
from cloud.store import Store
from common.errors import OperatorError
from common.messages import Sample

MakeSample = Callable[..., Sample]
LABELS = ["tear", "normal", "撕裂, 长", 'with "quotes"']


@pytest.fixture
def samples(store: Store, make_sample: MakeSample) -> list[Sample]:
    made = [make_sample(number) for number in range(6)]
    store.add_samples(made, 1)
    store.add_labels([(s.sample_id, "belt", label) for s, label in zip(made, LABELS, strict=False)], "li", 1)
    store.add_label(made[0].sample_id, "helmet", "none", "li", 1)
    return made


@pytest.mark.parametrize(
    ("export", "read", "name"), [(export_csv, import_csv, "x.csv"), (export_coco, import_coco, "x.json")]
)
def test_what_is_exported_is_imported_again(
    store: Store,
    samples: list[Sample],
    tmp_path: Path,
    export: Callable[..., int],
    read: Callable[..., int],
    name: str,
) -> None:
    assert export(store, "belt", tmp_path / name) == len(LABELS)
    before = store.labels("belt")
    for sample in samples:
        store.add_label(sample.sample_id, "belt", "", "li", 2)
    assert store.labels("belt") == {}
    assert read(store, "belt", tmp_path / name, "wang", 3) == len(LABELS)
    assert store.labels("belt") == before
    assert store.labels("helmet") == {samples[0].sample_id: "none"}, "another scenario is not touched"
    assert read(store, "belt", tmp_path / name, "wang", 4) == 0, "the same again changes nothing"


def test_csv_rows_say_where_and_when(store: Store, samples: list[Sample], tmp_path: Path) -> None:
    export_csv(store, "belt", tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["sample_id"]: row for row in csv.DictReader(file)}
    row = rows[samples[2].sample_id.hex()]
    assert (row["label"], row["site_id"], row["camera_id"]) == ("撕裂, 长", "north", "belt")
    assert int(row["captured_at_ns"]) == samples[2].captured_at_ns


def test_coco_has_images_categories_and_annotations_that_fit(
    store: Store, samples: list[Sample], tmp_path: Path
) -> None:
    export_coco(store, "belt", tmp_path / "x.json")
    document = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in document["images"]}
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert len(images) == len(document["annotations"]) == len(LABELS)
    assert {names[item["category_id"]] for item in document["annotations"]} == set(LABELS)
    assert all(image["width"] == 48 and image["height"] == 32 for image in images.values())
    assert all(item["image_id"] in images for item in document["annotations"])


GOOD = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sample_id,label\nzz,tear\n", "line 2"),
        ("sample_id,label\n{known},tear\n{known2},\n", "line 3"),
        ("sample_id,label\n{known},tear\n" + GOOD + ",tear\n", GOOD),
        ("sample_id,scenario,label\n{known},helmet,tear\n", "line 2"),
        ("sample,label\n{known},tear\n", "no column sample_id"),
        ("", "no column"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_is_imported(
    store: Store, samples: list[Sample], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "labels.csv"
    known, known2 = samples[4].sample_id.hex(), samples[5].sample_id.hex()
    file.write_text(text.format(known=known, known2=known2), encoding="utf-8")
    before = store.labels("belt")
    with pytest.raises(OperatorError) as caught:
        import_csv(store, "belt", file, "li", 9)
    assert said in str(caught.value)
    assert store.labels("belt") == before


@pytest.mark.parametrize(
    "text", ["no json", "[]", '{"images": [], "annotations": [{"image_id": 1}], "categories": []}']
)
def test_a_wrong_coco_file_is_named(store: Store, tmp_path: Path, text: str) -> None:
    file = tmp_path / "labels.json"
    file.write_text(text)
    with pytest.raises(OperatorError, match=r"labels\.json"):
        import_coco(store, "belt", file, "li", 9)
    with pytest.raises(OperatorError, match=r"nowhere\.json"):
        import_coco(store, "belt", tmp_path / "nowhere.json", "li", 9)

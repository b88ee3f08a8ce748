"""Every key of a settings model as rows: for `config keys`, `sim keys` and the generated documentation."""

import json
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table

Row = dict[str, str]


def list_keys(model: type[BaseModel], prefix: str = "") -> list[Row]:
    """One row per key: `key`, `default`, `meaning`. A table's keys are dotted, an array's are `[[name]].key`."""
    rows: list[Row] = []
    for name, field in model.model_fields.items():
        nested = next((t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)), None)
        if nested is not None:
            is_array = nested is not field.annotation
            if is_array and not prefix.startswith("[["):
                rows += list_keys(nested, f"[[{prefix}{name}]].")
            else:
                rows += list_keys(nested, prefix + (f"[[{name}]]." if is_array else f"{name}."))
            continue
        required = field.is_required()
        default = (
            "required" if required or field.default is PydanticUndefined else json.dumps(field.default, default=str)
        )
        rows.append({"key": prefix + name, "default": default, "meaning": field.description or ""})
    return rows


def markdown_table(model: type[BaseModel]) -> str:
    """The rows of a model as a Markdown table, for docs/settings.md."""
    return markdown_rows(list_keys(model))


def markdown_rows(keys: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    rows = "".join(f"| `{row['key']}` | `{row['default']}` | {row['meaning']} |\n" for row in keys)
    return f"| key | default | meaning |\n| --- | --- | --- |\n{rows}"


def print_keys(model: type[BaseModel], *, as_json: bool, as_markdown: bool = False) -> None:
    """Print the rows of a model as a table, as JSON or as Markdown."""
    print_rows(list_keys(model), as_json=as_json, as_markdown=as_markdown)


def print_rows(keys: Sequence[Row], *, as_json: bool, as_markdown: bool = False) -> None:
    """Print rows in one of the three forms."""
    console = Console()
    if as_json:
        console.print_json(data=list(keys))
        return
    if as_markdown:
        console.print(markdown_rows(keys), markup=False, highlight=False, soft_wrap=True, end="")
        return
    table = Table("key", "default", "meaning")
    for row in keys:
        table.add_row(row["key"], row["default"], row["meaning"])
    console.print(table)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

"""Results of a simulation: a Parquet table of all rounds, and an HTML page that needs nothing else."""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from html import escape
from pathlib import Path

from common.files import READABLE, write_atomically
from simulations.charts import round_lines
from simulations.fleet.engine import RoundFigures
from simulations.fleet.scenario import Fleet, Scenario
from simulations.report_texts import SCRIPT, STYLE
from simulations.screen import percent

_NOTE = "<p>Left out: sites whose statistics were not believed. MB up: in the last round.</p>"
_LINES_MAX = 9  # more lines than this cannot be told apart


def write_table(path: Path, figures: Sequence[RoundFigures]) -> None:
    """All rounds of all variants, one row each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {field.name: [getattr(row, field.name) for row in figures] for field in fields(RoundFigures)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_atomically(path, buffer.getvalue(), READABLE)


def write_report(path: Path, scenario: Scenario, figures: Sequence[RoundFigures]) -> None:
    """The page: the question, what differs, how accuracy grows, the last round of each variant."""
    by_variant: dict[str, list[RoundFigures]] = {}
    for row in figures:
        by_variant.setdefault(row.variant, []).append(row)
    shown = list(by_variant)[:_LINES_MAX]
    rounds = max((row.round for row in figures), default=0)
    moments = [
        {
            name: _or_nan(rows[number].accuracy)
            for name, rows in by_variant.items()
            if name in shown and number < len(rows)
        }
        for number in range(rounds)
    ]
    best = max(by_variant, key=lambda name: by_variant[name][-1].accuracy or 0.0, default="")
    chart = round_lines(moments, {name: name != best for name in by_variant}, from_first_release=False)
    head = "".join(
        f"<th class=n>{name}</th>"
        for name in (
            "accuracy",
            "at home",
            "own heads",
            "first phase",
            "classes",
            "labels",
            "left out",
            "of them honest",
            "MB up",
        )
    )
    rows = "".join(_row(name, own[-1]) for name, own in by_variant.items())
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(scenario.name)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><div><h1>{escape(scenario.name)}</h1><p>{escape(scenario.question)}</p></div></header>"
        f"<section><h2>Balanced accuracy by round</h2>{chart}</section>"
        f"<section><h2>After the last round</h2>{_NOTE}<table><tr><th></th>{head}</tr>{rows}</table></section>"
        f"<section><h2>Fleet</h2>{_fleet(scenario.variants[0][1])}</section>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    write_atomically(path, page.encode(), READABLE)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _row(name: str, last: RoundFigures) -> str:
    cells = (
        percent(_or_nan(last.accuracy)),
        percent(_or_nan(last.home)),
        percent(_or_nan(last.personal)),
        percent(_or_nan(last.first_phase)),
        last.classes,
        last.labels,
        last.quarantined,
        last.wrongly_quarantined,
        f"{last.mb_up:.1f}",
    )
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"


def _fleet(fleet: Fleet) -> str:
    import msgspec

    rows = "".join(
        f"<tr><td>{k}</td><td class=n>{escape(str(v))}</td></tr>" for k, v in msgspec.to_builtins(fleet).items()
    )
    return f"<p>The first variant:</p><table>{rows}</table>"


def as_rows(figures: Sequence[RoundFigures]) -> list[dict[str, object]]:
    """For JSON."""
    return [asdict(row) for row in figures]

"""The report of a demo: one HTML file that needs nothing else, in Chinese and English, fit to print.

It shows what `result.DemoResult` holds and computes nothing but means and sums. Everything that came from outside
is escaped.
"""

import base64
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from common.files import READABLE, write_atomically
from simulations.charts import accuracy_bars, round_lines
from simulations.report_texts import SCRIPT, STYLE, say
from simulations.result import DemoResult, Picture, RoundSummary
from simulations.screen import percent, size

_RANKS = ("novelty", "abnormality", "uncertainty")


def write_report(path: Path, result: DemoResult) -> None:
    """Write the report.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    sections = (_header, _tiles, _accuracy, _rounds, _gates, _samples, _delivery)
    body = "\n".join(section(result) for section in sections)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Headframe demo report</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )
    write_atomically(path, page.encode(), READABLE)


def _header(result: DemoResult) -> str:
    return (
        f"<header><div><h1>{say('title')}</h1><p>{say('subtitle', seconds=round(result.seconds))}</p></div>"
        '<button id="language" type="button">中文 / English</button></header>'
    )


def _tiles(result: DemoResult) -> str:
    """The four figures to remember."""
    tiles = []
    for key, seen in (("unseen", False), ("seen", True)):
        before, after = result.mean("before", seen=seen), result.mean("after", seen=seen)
        gain = "" if math.isnan(after - before) else say("points", points=f"{100 * (after - before):+.1f}")
        tiles.append((say(key), f"<i>{percent(before)} →</i> {percent(after)}", gain))
    labels, samples = (sum(getattr(site, name) for site in result.sites) for name in ("labels", "samples"))
    tiles.append((say("labels"), str(labels), say("of_samples", samples=samples)))
    held = sum(result.checks.values())
    tone = "good" if held == len(result.checks) else "bad"
    kills = say("survived", kills=len(result.kills)) if result.kills else say("no_kills")
    tiles.append((say("checks_hold"), f'<span class="{tone}">{held} / {len(result.checks)}</span>', kills))
    cells = "".join(
        f'<div class="tile"><small>{name}</small><b>{value}</b><small>{note}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _accuracy(result: DemoResult) -> str:
    before, after = (result.mean(m, seen=True) - result.mean(m, seen=False) for m in ("before", "after"))
    cliff = ""
    if not math.isnan(before) and not math.isnan(after):
        words = say("cliff", points=f"{100 * before:.1f}", left=f"{100 * max(0.0, after):.1f}")
        cliff = f'<p class="callout">{words}</p>'
    return _section("accuracy", "accuracy_note", accuracy_bars(result.sites) + cliff)


def _rounds(result: DemoResult) -> str:
    if not result.rounds:
        return ""
    moments: list[Mapping[str, float]] = [{site.site: site.before for site in result.sites}]
    moments += [summary.per_site for summary in result.rounds]
    chart = round_lines(moments, {site.site: site.seen for site in result.sites})
    rows = "".join(
        f"<tr><td>{say('round', number=number)}</td><td>{escape(summary.run_id)}</td><td class=n>{summary.labels}</td>"
        f"<td>{escape(summary.release_id) or '–'}</td><td>{_verdict(bool(summary.gate.get('passed', False)))}</td></tr>"
        for number, summary in enumerate(result.rounds, start=1)
    )
    head = f"<th></th><th>run</th><th class=n>{say('labels')}</th><th>{say('release')}</th><th>{say('gate')}</th>"
    return _section("rounds", "rounds_note", f"{chart}<table><tr>{head}</tr>{rows}</table>")


def _gates(result: DemoResult) -> str:
    if not result.rounds:
        return ""
    parts = [_gate(number, summary) for number, summary in enumerate(result.rounds, start=1)]
    return _section("gates", "gates_note", "".join(parts), long=True)


def _gate(number: int, summary: RoundSummary) -> str:
    """All comparisons of a round, scenario by scenario; open where the gate refused."""
    passed = bool(summary.gate.get("passed", False))
    tables = [
        _comparisons(scenario, report) for scenario, report in summary.gate.items() if isinstance(report, Mapping)
    ]
    if not tables and "comparisons" in summary.gate:
        tables = [_comparisons("", summary.gate)]
    title = f"{say('round', number=number)} · {escape(summary.release_id or '–')} · {_verdict(passed)}"
    content = "".join(tables) or f"<p>{say('no_gate')}</p>"
    return f"<details{'' if passed else ' open'}><summary>{title}</summary>{content}</details>"


def _comparisons(scenario: str, report: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(row['name']))}</td><td class=n>{int(row['samples'])}</td>"
        f"<td class=n>{percent(_number(row['running']))}</td><td class=n>{percent(_number(row['candidate']))}</td>"
        f"<td class=n>{_number(row.get('p_value')):.3f}</td><td>{_verdict(bool(row['passed']))}</td></tr>"
        for row in report.get("comparisons", ())
    )
    names = ("comparison", "stored", "running", "candidate", "p_value")
    head = "".join(f"<th{' class=n' if number else ''}>{say(name)}</th>" for number, name in enumerate(names))
    table = f"<table><tr>{head}<th></th></tr>{rows}</table>" if rows else f"<p>{say('no_gate')}</p>"
    sites = ", ".join(f"{site}: {head}" for site, head in dict(report.get("sites", {})).items())
    heads = f"<p>{say('heads')}: {escape(sites)}</p>" if sites else ""
    return f"<h3>{escape(scenario)}</h3>{heads}{table}"


def _samples(result: DemoResult) -> str:
    cards = "".join(map(_card, result.pictures))
    content = f'<div class="cards">{cards}</div>' if cards else f"<p>{say('no_samples')}</p>"
    return _section("samples", "samples_note", content, long=True)


def _card(picture: Picture) -> str:
    """One sample: picture, label, why it was chosen, its ranks."""
    data = base64.b64encode(picture.jpeg).decode()
    bars = "".join(
        f'<div class="bar"><span>{say(name)}</span><u style="width:{100 * min(1.0, max(0.0, rank)):.0f}%"></u></div>'
        for name in _RANKS
        if not math.isnan(rank := _number(picture.scores.get(name)))
    )
    return (
        f'<div class="card"><img alt="{escape(picture.label)}" src="data:image/jpeg;base64,{data}"><div>'
        f"<b>{escape(picture.label)}</b><br>{escape(picture.site)} · {escape(picture.camera)}<br>"
        f'<span class="why">{say(picture.reason)}</span>{bars}</div></div>'
    )


def _delivery(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(s.site)}</td><td class=n>{s.samples}</td><td class=n>{s.labels}</td>"
        f"<td class=n>{size(s.bytes_up)}</td><td class=n>{size(s.bytes_down)}</td></tr>"
        for s in result.sites
    )
    total = [
        sum(getattr(site, name) for site in result.sites) for name in ("samples", "labels", "bytes_up", "bytes_down")
    ]
    figures = (str(total[0]), str(total[1]), size(total[2]), size(total[3]))
    rows += f'<tr class="total"><td>{say("total")}</td>' + "".join(f"<td class=n>{f}</td>" for f in figures) + "</tr>"
    names = ("site", "stored", "labelled", "up", "down")
    head = "".join(f"<th{' class=n' if number else ''}>{say(name)}</th>" for number, name in enumerate(names))
    checks = "".join(
        f"<li>{_verdict(holds, 'holds', 'fails')} · {escape(name)}</li>" for name, holds in result.checks.items()
    )
    kills = "".join(f"<li>{say('survived', kills=1)} · {escape(kill)}</li>" for kill in result.kills)
    content = f"<table><tr>{head}</tr>{rows}</table>"
    if checks or kills:
        content += f'<h3>{say("checks")}</h3><ul class="checks">{checks}{kills}</ul>'
    return _section("delivery", "", content)


def _section(title: str, note: str, content: str, *, long: bool = False) -> str:
    about = f"<p>{say(note)}</p>" if note else ""
    return f"<section{' class=long' if long else ''}><h2>{say(title)}</h2>{about}{content}</section>"


def _verdict(good: bool, yes: str = "passed", no: str = "refused") -> str:
    return f'<span class="{"good" if good else "bad"}">{"✓" if good else "✗"} {say(yes if good else no)}</span>'


def _number(value: object) -> float:
    """A figure from JSON; NaN where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan

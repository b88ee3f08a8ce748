"""A page of the run that needs nothing else: what was done to whom and when, and how the samples came through."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from common.files import READABLE, write_atomically
from simulations.chaos.run import Chaos, ChaosResult, Span
from simulations.report_texts import SCRIPT, STYLE

_WIDTH, _NAMES, _ROW = 1000, 110, 26
_COLOURS: Final = {
    "link": "#8fb3d9",
    "disk": "#d9a441",
    "clock": "#9a86c9",
    "broker": "#c9736b",
    "two": "#6fae8f",
    "restored": "#5a8f9e",
}
"""By the first word of a fault's name."""

_WORDS: Final = {"two": "a twin", "restored": "an old disk", "broker": "amnesia"}


def write_report(path: Path, run: Chaos, result: ChaosResult) -> None:
    """The verdict, the timeline, the growth of samples, memory, and every fault by number."""
    verdict = result.verdict
    passed_s = max([result.seconds, *(at_s - run.began_s for at_s, *_ in run.watch.growth)])
    holds = "holds" if result.holds else "does not hold"
    sentence = (
        f"{verdict.accepted} samples were accepted, {verdict.stored} are stored, {verdict.lost} are lost, "
        f"{verdict.duplicates} are there twice; {result.kills} times kill -9. Seed {result.seed}. The promise {holds}."
    )
    accepted = [(at_s - run.began_s, float(count)) for at_s, count, _ in run.watch.growth]
    waiting = [(at_s - run.began_s, float(count)) for at_s, _, count in run.watch.growth]
    memory = {name: [(at_s - run.began_s, mb) for at_s, mb in rows] for name, rows in run.watch.memory.items()}
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>chaos, seed {result.seed}</title><style>{STYLE}</style></head><body><main>"
        f"<header><div><h1>Chaos</h1><p>{escape(sentence)}</p></div></header>"
        f"<section><h2>What was done</h2>{timeline(run.spans, passed_s)}</section>"
        f"<section><h2>Samples: accepted, and waiting in spools</h2>"
        f"{lines({'accepted': accepted, 'waiting': waiting}, passed_s)}</section>"
        f"<section><h2>Memory, MB</h2>{lines(memory, passed_s)}</section>"
        f"<section><h2>By number</h2><table>{_rows(result)}</table></section>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )
    write_atomically(path, page.encode(), READABLE)


def timeline(spans: Sequence[Span], passed_s: float) -> str:
    """A lane for each machine; a bar lasts as long as its fault, a red stroke is a kill."""
    targets = sorted({span.target for span in spans})
    scale = (_WIDTH - _NAMES) / passed_s
    parts = [f'<text x="0" y="{_ROW * number + 18}">{escape(target)}</text>' for number, target in enumerate(targets)]
    for span in sorted(spans, key=lambda span: (not span.name.startswith("link"), span.name.startswith("kill"))):
        x, y = _NAMES + span.began_s * scale, _ROW * targets.index(span.target)
        title = f"<title>{escape(span.name)}, {span.began_s:.1f} s</title>"
        if span.name.startswith("kill"):
            parts.append(f'<rect x="{x:.1f}" y="{y + 1}" width="3" height="22" fill="#c0392b">{title}</rect>')
            continue
        width = max(3.0, (span.ended_s - span.began_s) * scale)
        top, height = (y + 5, 14) if span.name.startswith("link") else (y + 9, 6)
        colour = _COLOURS.get(span.name.split()[0].rstrip(":,"), "#8a96a3")
        parts.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="2" fill="{colour}">{title}</rect>'
        )
    height = _ROW * len(targets) + 22
    parts.append(_axis(passed_s, height))
    x, height = _NAMES, height + 16
    for word, colour in {**_COLOURS, "kill -9": "#c0392b"}.items():
        parts.append(f'<rect x="{x}" y="{height}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text class="soft" x="{x + 18}" y="{height + 11}">{escape(_WORDS.get(word, word))}</text>')
        x += 125
    return f'<svg viewBox="0 0 {_WIDTH} {height + 20}" role="img">{"".join(parts)}</svg>'


def lines(series: dict[str, list[tuple[float, float]]], passed_s: float) -> str:
    """One line per name, named at its end."""
    top = max((value for rows in series.values() for _, value in rows), default=0.0) or 1.0
    height, right = 200, 110
    x_scale, y_scale = (_WIDTH - _NAMES) / passed_s, (height - 40) / top
    parts = [f'<text class="soft" x="0" y="14">{top:.0f}</text>']
    for number, (name, rows) in enumerate(sorted(series.items())):
        if not rows:
            continue
        points = " ".join(f"{_NAMES + max(0, x) * x_scale:.1f},{height - 26 - y * y_scale:.1f}" for x, y in rows)
        colour = f"hsl({(number * 67 + 205) % 360} 45% 45%)"
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        end_y = 14 + 18 * number
        parts.append(f'<text class="figure" x="{_WIDTH + 10}" y="{end_y}" style="fill:{colour}">{escape(name)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH + right} {height}" role="img">{"".join(parts)}{_axis(passed_s, height)}</svg>'


def _axis(passed_s: float, height: int) -> str:
    step = next(step for step in (5, 10, 30, 60, 120, 300, 3600, 36_000) if passed_s / step <= 12 or step == 36_000)
    scale = (_WIDTH - _NAMES) / passed_s
    return "".join(
        f'<text class="soft" x="{_NAMES + at_s * scale:.1f}" y="{height - 4}">{at_s} s</text>'
        for at_s in range(0, int(passed_s) + 1, step)
    )


def _rows(result: ChaosResult) -> str:
    figures = result.figures()
    faults = figures.pop("faults")
    cells = {**figures, **faults}
    return "".join(
        f"<tr><td>{escape(str(name))}</td><td class=n>{escape(str(value))}</td></tr>" for name, value in cells.items()
    )

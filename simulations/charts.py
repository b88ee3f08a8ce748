"""The two charts of the report as inline SVG. Values are accuracies 0..1; NaN is left out."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from simulations.report_texts import say
from simulations.result import SiteResult
from simulations.screen import percent

_WIDTH = 1000
_NAMES = 190
"""Room for the names of sites, px."""
_LABEL_GAP = 17
"""Least distance of two labels at the line ends, px."""


def tspan(key: str, **values: object) -> str:
    """A caption in both languages inside an SVG text."""
    return say(key, **values).replace("<span", "<tspan").replace("</span>", "</tspan>")


def accuracy_bars(sites: Sequence[SiteResult]) -> str:
    """Two bars per site, before and after; the trained sites first."""
    scale = _WIDTH - _NAMES - 70
    parts, y = [], 34
    for seen in (True, False):
        group = [site for site in sites if site.seen is seen]
        if not group:
            continue
        parts.append(f'<text class="soft" x="0" y="{y}">{tspan("seen" if seen else "unseen")}</text>')
        y += 12
        for site in group:
            parts.append(f'<text x="0" y="{y + 21}">{escape(site.site)}</text>')
            for value, colour, top in ((site.before, "var(--before)", y), (site.after, "var(--after)", y + 17)):
                if not math.isnan(value):
                    length = value * scale
                    parts.append(
                        f'<rect x="{_NAMES}" y="{top}" width="{length:.1f}" height="15" rx="2" fill="{colour}"/>'
                        f'<text class="figure" x="{_NAMES + length + 7:.1f}" y="{top + 12}">{percent(value)}</text>'
                    )
            y += 44
        y += 16
    grid = "".join(
        f'<line x1="{_NAMES + tick * scale:.1f}" x2="{_NAMES + tick * scale:.1f}" y1="22" y2="{y - 14}" '
        f'stroke="var(--line)"/>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    legend = (
        f'<rect x="{_NAMES}" y="2" width="12" height="12" rx="2" fill="var(--before)"/>'
        f'<text class="soft" x="{_NAMES + 18}" y="13">{tspan("before")}</text>'
        f'<rect x="{_NAMES + 90}" y="2" width="12" height="12" rx="2" fill="var(--after)"/>'
        f'<text class="soft" x="{_NAMES + 108}" y="13">{tspan("after")}</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {y - 8}" role="img">{grid}{legend}{"".join(parts)}</svg>'


def round_lines(
    moments: Sequence[Mapping[str, float]], seen: Mapping[str, bool], *, from_first_release: bool = True
) -> str:
    """A line per site from the first release (or from round 1) through the rounds, named at its end.

    Args:
        moments: accuracy per site before, after round 1, ...
        seen: whether the first release was trained at a site; unseen sites are drawn in the accent colour.
    """
    height, top, left, right = 300, 20, 50, 250
    step = (_WIDTH - left - right) / max(1, len(moments) - 1)
    values = [v for moment in moments for v in moment.values() if not math.isnan(v)]
    floor = max(0.0, math.floor(min(values, default=0.0) * 10) / 10)
    span = height - top - 40

    def level(value: float) -> float:
        return top + (1 - value) / max(1e-9, 1 - floor) * span

    parts = [
        f'<line x1="{left}" x2="{_WIDTH - right}" y1="{level(tick):.1f}" y2="{level(tick):.1f}" stroke="var(--line)"/>'
        f'<text class="soft" x="0" y="{level(tick) + 4:.1f}">{100 * tick:.0f} %</text>'
        for tick in (floor, (1 + floor) / 2, 1.0)
    ]
    for number in range(len(moments)):
        anchor = "start" if number == 0 else "middle"
        released = from_first_release and number == 0
        key = tspan("first_release") if released else tspan("round", number=number + (not from_first_release))
        parts.append(
            f'<text class="soft" text-anchor="{anchor}" x="{left + number * step:.1f}" y="{height - 4}">{key}</text>'
        )
    ends = []
    for site in dict.fromkeys(site for moment in moments for site in moment):
        points = [
            (left + number * step, level(moment[site]))
            for number, moment in enumerate(moments)
            if site in moment and not math.isnan(moment[site])
        ]
        if not points:
            continue
        colour = "#8a96a3" if seen.get(site, False) else "var(--after)"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
        ends.append((points[-1], f"{site}  {percent(moments[-1].get(site, math.nan))}", colour))
    parts += _end_labels(ends)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _end_labels(ends: list[tuple[tuple[float, float], str, str]]) -> list[str]:
    """Names at the line ends, pushed apart so that none covers another."""
    parts, last = [], -math.inf
    for (x, y), text, colour in sorted(ends, key=lambda end: end[0][1]):
        last = max(y, last + _LABEL_GAP)
        parts.append(
            f'<text class="figure" x="{x + 12:.1f}" y="{last + 4:.1f}" style="fill:{colour}">{escape(text)}</text>'
        )
    return parts

"""One screen for a running demo: gateways, centre, accuracies, what just happened. It shows; it decides nothing.

On a terminal the screen is live; elsewhere a line is printed for each note and each five seconds.
"""

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simulations.result import DemoResult

LINE_EVERY_S = 5.0
NOTES_SHOWN = 6


class LiveScreen:
    """Context manager around the terminal.

    Args:
        quiet: show nothing but the summary (for `--json`).
        console: where to write; the terminal by default.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console()
        self._quiet = quiet
        self._live: Live | None = None
        self._began_s = time.monotonic()
        self._line_due_s = 0.0
        self._notes: deque[str] = deque(maxlen=NOTES_SHOWN)
        self._states: list[Mapping[str, Any]] = []
        self._counts: Mapping[str, Any] = {}
        self._accuracies: dict[str, dict[str, float]] = {}

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def note(self, text: str) -> None:
        """Something happened."""
        self._notes.append(f"{self._elapsed()} {text}")
        if self._live is None and not self._quiet:
            self._console.print(self._notes[-1], markup=False, highlight=False)
        self._refresh()

    def fleet(self, states: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> None:
        """What the gateways report and what the centre holds (as the console's API gives them)."""
        self._states, self._counts = sorted(states, key=lambda state: str(state["gateway_id"])), counts
        now_s = time.monotonic()
        if self._live is None and not self._quiet and now_s >= self._line_due_s:
            self._line_due_s = now_s + LINE_EVERY_S
            self._console.print(self._line(), markup=False, highlight=False)
        self._refresh()

    def accuracies(self, moment: str, per_site: Mapping[str, float]) -> None:
        """Accuracy per site at a moment: "before", "round 1", ..."""
        self._accuracies[moment] = dict(per_site)
        self.note(f"accuracy {moment}: " + ", ".join(f"{site} {percent(a)}" for site, a in per_site.items()))

    def summary(self, result: DemoResult, report: Path, *, as_json: bool = False) -> None:
        """The last word: a table, or one JSON object."""
        self._close()
        if as_json:
            self._console.print(summary_json(result, report), markup=False, highlight=False, soft_wrap=True)
            return
        self._console.print(_site_table(result))
        for name, holds in result.checks.items():
            self._console.print(Text(f"{'✓' if holds else '✗'} {name}", style="green" if holds else "bold red"))
        for kill in result.kills:
            self._console.print(f"  survived: {kill}", markup=False, highlight=False)
        self._console.print(f"{result.seconds:.0f} s. Report: {report}", markup=False, highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The whole screen."""
        parts: list[RenderableType] = [_fleet_table(self._states), self._centre()]
        if self._accuracies:
            parts.append(_accuracy_table(self._accuracies))
        parts.append(Panel(Text("\n".join(self._notes)), title="events", title_align="left", border_style="dim"))
        return Group(*parts)

    def _centre(self) -> Panel:
        releases = sorted({str(state.get("release_id", "")) for state in self._states} - {""})
        words = [f"{name} {value}" for name, value in self._counts.items() if isinstance(value, int)]
        words.append(f"running {', '.join(releases) or 'nothing yet'}")
        return Panel(Text("   ".join(words)), title=f"centre  {self._elapsed()}", title_align="left")

    def _line(self) -> str:
        words = [
            f"{s['gateway_id']}: looks {s.get('looks', 0)}, chosen {sum(s.get('chosen', {}).values())}, "
            f"spool {s.get('spool_rows', 0)}, {s.get('release_id') or 'no release'}"
            for s in self._states
        ]
        held = ", ".join(f"{name} {value}" for name, value in self._counts.items() if isinstance(value, int))
        return f"{self._elapsed()} " + " | ".join([f"centre: {held}", *words])

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._began_s)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def percent(value: float) -> str:
    """`93.4 %`, or a dash where there is nothing to say."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def size(count: int) -> str:
    """Bytes for people: decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def summary_json(result: DemoResult, report: Path) -> str:
    """The result without its pictures; NaN becomes null."""
    sites = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(site).items()}
        for site in result.sites
    ]
    rounds = [
        {
            "run_id": r.run_id,
            "labels": r.labels,
            "release_id": r.release_id,
            "passed": bool(r.gate.get("passed", False)),
            "per_site": {site: None if math.isnan(a) else a for site, a in r.per_site.items()},
        }
        for r in result.rounds
    ]
    return json.dumps(
        {
            "sites": sites,
            "rounds": rounds,
            "kills": result.kills,
            "checks": result.checks,
            "seconds": round(result.seconds, 1),
            "report": str(report),
        }
    )


def _fleet_table(states: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="gateways", title_justify="left", expand=True)
    for name in ("gateway", "cameras", "looks", "chosen (why)", "spool", "up", "down", "release"):
        table.add_column(name, justify="right" if name in ("looks", "spool", "up", "down") else "left")
    for state in states:
        cameras = ", ".join(str(camera["state"]) for camera in state.get("cameras", ()))
        chosen = ", ".join(f"{reason} {n}" for reason, n in sorted(state.get("chosen", {}).items()))
        table.add_row(
            Text(str(state["gateway_id"]), style="" if state.get("online", True) else "red"),
            Text(cameras, style="green" if set(cameras.split(", ")) <= {"live", "ended"} else "yellow"),
            str(state.get("looks", 0)),
            Text(chosen),
            str(state.get("spool_rows", 0)),
            size(int(state.get("bytes_up", 0))),
            size(int(state.get("bytes_down", 0))),
            Text(str(state.get("release_id", ""))),
        )
    return table


def _accuracy_table(moments: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="accuracy per site", title_justify="left")
    table.add_column("site")
    for moment in moments:
        table.add_column(Text(moment), justify="right")
    for site in dict.fromkeys(site for per_site in moments.values() for site in per_site):
        table.add_row(Text(site), *(percent(per_site.get(site, math.nan)) for per_site in moments.values()))
    return table


def _site_table(result: DemoResult) -> Table:
    table = Table(title="sites", title_justify="left")
    for name in ("site", "trained on", "accuracy before", "after", "labels", "samples", "up", "down"):
        left = name in ("site", "trained on")
        table.add_column(name, justify="left" if left else "right", no_wrap=name == "site")
    for s in result.sites:
        better = "green" if s.after > s.before else ""
        table.add_row(
            Text(s.site),
            "yes" if s.seen else "no",
            percent(s.before),
            Text(percent(s.after), style=better),
            str(s.labels),
            str(s.samples),
            size(s.bytes_up),
            size(s.bytes_down),
        )
    return table

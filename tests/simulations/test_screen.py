"""The screen of a running demo: says what the gateways say, on a terminal and without one."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from simulations.result import DemoResult, RoundSummary, SiteResult
from simulations.screen import LiveScreen, percent, size

STATES = [
    {
        "gateway_id": "gw-west",
        "cameras": [{"state": "live"}, {"state": "dark"}],
        "looks": 120,
        "chosen": {"novel": 7, "trickle": 2},
        "spool_rows": 5,
        "bytes_up": 1_234_567,
        "bytes_down": 900,
        "release_id": "r1-aaaa",
        "online": True,
    },
    {"gateway_id": "gw-east", "online": False},
]
COUNTS = {"samples": 42, "labels": 17, "by_site": {"west": 42}}
RESULT = DemoResult(
    sites=[
        SiteResult("west [shaft]", False, 0.41, 0.86, 24, 90, 3_000_000, 1_500_000),
        SiteResult("east", True, math.nan, 0.97, 0, 0, 0, 0),
    ],
    rounds=[RoundSummary("run-1", 24, "", {"passed": False}, {"east": math.nan})],
    kills=["kill -9 gw-west"],
    checks={"nothing was lost": True, "clocks agree": False},
    seconds=65.4,
)


def paper(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=140, color_system=None, legacy_windows=False), out


def test_without_a_terminal_notes_are_lines_and_the_fleet_a_line_each_five_seconds() -> None:
    console, out = paper(terminal=False)
    with LiveScreen(console=console) as screen:
        screen.note("[bold]the centre was killed")
        for _ in range(20):
            screen.fleet(STATES, COUNTS)
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("[bold]the centre was killed")
    assert len(lines) == 2
    assert "gw-west: looks 120, chosen 9, spool 5, r1-aaaa" in lines[1]
    assert "gw-east: looks 0, chosen 0, spool 0, no release" in lines[1]
    assert "samples 42, labels 17" in lines[1]


def test_on_a_terminal_one_screen_shows_fleet_centre_accuracies_and_events() -> None:
    console, out = paper(terminal=True)
    with LiveScreen(console=console) as screen:
        screen.fleet(STATES, COUNTS)
        screen.accuracies("before", {"west": 0.413, "east": math.nan})
        screen.accuracies("round 1", {"west": 0.86, "east": 0.97})
        console.print(screen.render())
    shown = out.getvalue()
    for word in ("gw-west", "live, dark", "novel 7, trickle 2", "1.2 MB", "samples 42", "41.3 %", "97.0 %", "r1-aaaa"):
        assert word in shown


def test_a_quiet_screen_says_nothing_but_its_json() -> None:
    console, out = paper(terminal=True)
    with LiveScreen(quiet=True, console=console) as screen:
        screen.note("working")
        screen.fleet(STATES, COUNTS)
        screen.accuracies("before", {"west": 0.4})
    screen.summary(RESULT, Path("runs/demo/report.html"), as_json=True)
    told = json.loads(out.getvalue())
    assert told["sites"][0]["after"] == 0.86
    assert told["sites"][1]["before"] is None
    assert told["rounds"][0] == {
        "run_id": "run-1", "labels": 24, "release_id": "", "passed": False, "per_site": {"east": None},
    }  # fmt: skip
    assert told["checks"] == RESULT.checks
    assert told["report"] == "runs/demo/report.html"


def test_the_summary_shows_sites_checks_kills_and_the_report() -> None:
    console, out = paper(terminal=False)
    LiveScreen(console=console).summary(RESULT, Path("runs/demo/report.html"))
    shown = out.getvalue()
    for word in ("west [shaft]", "41.0 %", "86.0 %", "✓ nothing was lost", "✗ clocks agree", "kill -9 gw-west"):
        assert word in shown
    assert "65 s. Report: runs/demo/report.html" in shown


def test_the_terminal_is_given_back_when_the_demo_fails() -> None:
    console, out = paper(terminal=True)
    with pytest.raises(RuntimeError, match="broken"), LiveScreen(console=console) as screen:
        screen.fleet(STATES, COUNTS)
        raise RuntimeError("broken")
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue()  # the cursor is shown again


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2_340_000_000, "2.34 GB")],
)
def test_sizes_are_in_decimal_units(count: int, shown: str) -> None:
    assert size(count) == shown


def test_an_accuracy_that_was_not_measured_is_a_dash() -> None:
    assert percent(math.nan) == "–"
    assert percent(0.934) == "93.4 %"

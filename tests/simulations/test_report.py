"""The report: one file that needs nothing else, says what the result says, in both languages."""

import base64
import math
import re
import string
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from simulations.charts import accuracy_bars, round_lines
from simulations.report import write_report
from simulations.report_texts import TEXTS, say
from simulations.result import DemoResult, Picture, RoundSummary, SiteResult

JPEG = cv2.imencode(".jpg", np.full((27, 48, 3), 90, np.uint8))[1].tobytes()
GATE = {
    "passed": True,
    "foreign-object": {
        "passed": True,
        "sites": {"west-shaft": "personal"},
        "comparisons": [
            {"name": "gold/wood", "samples": 61, "running": 0.9, "candidate": 0.95, "p_value": 0.25, "passed": True}
        ],
    },
}
RESULT = DemoResult(
    sites=[
        SiteResult("north-drift", True, 0.98, 0.99, 10, 80, 2_500_000, 1_400_000),
        SiteResult("west-shaft", False, 0.42, 0.87, 24, 95, 3_100_000, 1_400_000),
    ],
    rounds=[
        RoundSummary("run-1", 20, "r2-abcd", GATE, {"north-drift": 0.98, "west-shaft": 0.7}),
        RoundSummary("run-2", 34, "", {"passed": False}, {"north-drift": 0.99, "west-shaft": 0.87}),
    ],
    pictures=[Picture("west-shaft", "belt-1", "novel", "wood", JPEG, {"novelty": 0.97, "value": 0.9})],
    kills=["kill -9 gw-west-shaft"],
    checks={"nothing was lost": True, "every gateway stopped cleanly": False},
    seconds=120.0,
)


class Outline(HTMLParser):
    """Tags with their attributes; fails on a tag closed out of turn."""

    VOID = ("meta", "img", "br", "rect", "line", "circle", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def written(tmp_path: Path, result: DemoResult) -> str:
    path = tmp_path / "report.html"
    write_report(path, result)
    return path.read_text(encoding="utf-8")


def test_the_report_is_well_formed_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = written(tmp_path, RESULT)
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    for tag, attributes in outline.tags:
        assert tag not in ("link", "iframe")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "href" not in attributes
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_report_says_what_the_result_says(tmp_path: Path) -> None:
    page = written(tmp_path, RESULT)
    for word in (
        *("42.0 %", "87.0 %", "+45.0", "r2-abcd", "run-2", "gold/wood", "0.250", "west-shaft: personal"),
        *("3.1 MB", "5.6 MB", "kill -9 gw-west-shaft", "nothing was lost", "1 / 2", "1 × kill -9 survived"),
    ):
        assert word in page, word
    assert base64.b64encode(JPEG).decode() in page


def test_every_caption_is_there_in_chinese_and_english(tmp_path: Path) -> None:
    page = written(tmp_path, RESULT)
    assert page.count('lang="en">') == page.count('lang="zh">') + 1  # and the page itself
    for key, (english, chinese) in TEXTS.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, chinese)]
        assert fields[0] == fields[1], f"the languages of {key!r} name different values"


def test_a_refused_gate_is_open_and_a_passed_one_is_folded(tmp_path: Path) -> None:
    page = written(tmp_path, RESULT)
    first, second = re.findall(r"<details[^>]*>", page)
    assert (first, second) == ("<details>", "<details open>")


def test_what_came_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    row = {"name": evil, "samples": 1, "running": 0.9, "candidate": 0.9, "passed": True}
    gate = {"passed": True, evil: {"sites": {evil: evil}, "comparisons": [row]}}
    result = DemoResult(
        sites=[replace(RESULT.sites[0], site=evil)],
        rounds=[RoundSummary(evil, 1, evil, gate, {evil: 0.5})],
        pictures=[Picture(evil, evil, evil, evil, JPEG, {})],
        kills=[evil],
        checks={evil: True},
    )
    page = written(tmp_path, result)
    assert evil not in page
    assert page.count("<script>") == 1


@pytest.mark.parametrize(
    "result",
    [
        DemoResult(sites=[]),
        DemoResult(sites=[SiteResult("west", False, math.nan, math.nan, 0, 0, 0, 0)]),
        DemoResult(sites=RESULT.sites, rounds=[RoundSummary("run-1", 0, "", {}, {})]),
    ],
    ids=["no sites", "nothing measured", "a round without figures"],
)
def test_a_demo_that_ended_early_still_gets_its_report(tmp_path: Path, result: DemoResult) -> None:
    page = written(tmp_path, result)
    assert "NaN" not in page
    assert "nan" not in re.sub(r"[A-Za-z0-9+/=]{60,}", "", page)


def test_the_bars_are_as_long_as_the_accuracies() -> None:
    drawn = ElementTree.fromstring(accuracy_bars(RESULT.sites))  # noqa: S314 - our own output
    widths = [float(bar.get("width", 0)) for bar in drawn.iter("rect") if bar.get("height") == "15"]
    full = widths[0] / 0.98
    assert widths == pytest.approx([0.98 * full, 0.99 * full, 0.42 * full, 0.87 * full], abs=0.1)


def test_names_at_the_line_ends_do_not_cover_each_other() -> None:
    sites = {f"site-{n}": 0.9 + n / 1000 for n in range(6)}
    drawn = ElementTree.fromstring(round_lines([sites, sites], dict.fromkeys(sites, False)))  # noqa: S314
    heights = sorted(float(t.get("y", 0)) for t in drawn.iter("text") if (t.text or "").startswith("site-"))
    assert len(heights) == 6
    assert min(np.diff(heights)) >= 16


def test_a_reason_without_a_caption_is_shown_as_it_is() -> None:
    assert say("<odd>") == '<span lang="en">&lt;odd&gt;</span><span lang="zh">&lt;odd&gt;</span>'

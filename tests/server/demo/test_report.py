from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from server.demo.findings import Check, Findings, GovernanceEvent, Verdict
from server.demo.report_html import render, write_report
from server.demo.report_terminal import print_report, sparkline
from tests.server.demo.synthetic import CANARY, findings

VOID = {"meta", "br", "wbr"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order; collects ids, links and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.append(name)
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "srcset", "action", "xlink:href"}:
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def short(found: Findings) -> Findings:
    """A run of three days in October: no canary, no incident, checks that cannot tell."""
    checks = [
        replace(c, verdict=Verdict.SKIP) if c.section in {"drift", "traffic"} else c
        for c in found.checks
    ]
    days = [replace(d, late_share=None) for d in found.days[:3]]
    return replace(
        found, checks=checks, days=days, incidents=[], arms=found.arms[:1],
        period=(days[0].day, days[-1].day),
    )  # fmt: skip


RUNS = {
    "whole": findings(),
    "failing": findings(failing=True),
    "kept": findings(keep=True),
    "short": short(findings()),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_page_is_whole_and_needs_nothing_from_outside(run: str) -> None:
    page = render(RUNS[run])
    parser = parse(page)
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.links
    assert all(link.startswith("#") and link[1:] in parser.ids for link in parser.links)
    assert not [name for name in parser.attributes if name.startswith("on")]
    assert "<script" not in page
    assert not re.search(r"@import|url\(", page)


@pytest.mark.parametrize("run", RUNS)
def test_every_picture_is_xml_with_finite_coordinates_and_a_name(run: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", render(RUNS[run]), re.DOTALL)
    assert len(pictures) >= 6
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.get("aria-label") or root.get("aria-hidden")
        for element in root.iter():
            text = " ".join(element.attrib.values())
            assert "nan" not in text.lower().split()
            assert "inf" not in text.lower().split()
            for name in ("width", "height", "r"):
                assert float(element.get(name, 0)) >= 0


def test_the_page_shows_every_check_with_its_measurement() -> None:
    found = findings(failing=True)
    page = render(found)
    for check in found.checks:
        assert check.name in page
        assert check.measured in page
    assert "1 of 11 checks failed: Bit for bit" in page
    assert "All 11 checks passed" in render(findings())
    assert "cannot be decided" in render(short(findings()))


def test_what_people_wrote_is_escaped() -> None:
    found = findings()
    evil = "<script>alert(1)</script>"
    acts = [GovernanceEvent("now", evil, evil, evil, evil)]
    checks = [Check.of(evil, "model", wanted=evil, measured=evil, holds=True)]
    page = render(replace(found, governance=acts, checks=checks, alarm_budget=evil))
    assert "<script" not in page
    parse(page)


def test_the_page_says_where_the_system_runs_only_when_it_does() -> None:
    assert "127.0.0.1:8001" in render(findings(keep=True))
    assert "still running" not in render(findings())


def test_commands_of_the_page_work_as_they_stand() -> None:
    page = render(findings())
    commands = re.findall(r"headrace replay 0[^<]*", page)
    assert len(commands) == 2
    assert all(command.endswith("--data-dir demo-data") for command in commands)
    # These ask control, which a demo stops at its end.
    for command in ("model card", "release list", "features list"):
        (_, *after) = page.split(f"headrace {command}")
        assert after
        assert all("while <code>make up</code> runs" in text[:150] for text in after)


PAGE = Path("demo-data/report.html")


def printed(found: Findings, width: int = 120, page: Path = PAGE) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_report(console, found, page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("run", RUNS)
def test_the_terminal_report_names_the_page_and_the_verdict(run: str) -> None:
    text = printed(RUNS[run], width=80)
    assert "Report: demo-data/report.html" in text
    assert ("checks failed" in text) == (run == "failing")
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_report_names_what_failed_and_what_runs() -> None:
    assert "1 of 11 checks failed: Bit for bit" in printed(findings(failing=True))
    assert "127.0.0.1:8001" in printed(findings(keep=True))
    assert "All 8 checks passed" in printed(short(findings()))


def test_the_terminal_report_cuts_nothing_off() -> None:
    found = findings(keep=True)
    page = Path("a-folder-with-a-long-name/" * 5) / "report.html"
    feature = "view_with_a_name:" + "dep_delay_mean_7d_" * 5
    named = Check.of("Drift", "drift", wanted=feature, measured=f"moved: {feature}", holds=True)
    text = printed(replace(found, checks=[named, *found.checks]), width=80, page=page)
    assert f"Report: {page}\n" in text
    assert "…" not in text
    whole = "".join(text.split())
    for check in [named, *found.checks]:
        assert "".join(check.wanted.split()) in whole
        assert "".join(check.measured.split()) in whole
    for incident in found.incidents:
        for part in (*incident.signals, *(m.name for m in incident.moved)):
            assert "".join(part.split()) in whole


def test_both_reports_say_which_models_are_baselines() -> None:
    for shown in (render(findings()), printed(findings())):
        assert "LightGBM without history (baseline)" in shown
        assert "LightGBM with history (baseline)" not in shown


def test_a_sparkline_spans_its_range() -> None:
    assert sparkline([0, 0.5, 1]) == "▁▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([5], top=1) == "█"


def test_the_report_is_written_as_utf8(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", findings())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "≤" in text
    assert f"{CANARY.day} {CANARY:%b}" in text

"""Pages hold what their reports hold, load nothing, and let no text become markup."""

from __future__ import annotations

import html.parser
import re

import pytest
from tests.vet.made import arms, first, joined, protocol, rows, sound, suite

from aperto.vet.charts import Bar, Point, curve, intervals
from aperto.vet.evidence import Evidence
from aperto.vet.gate import decide
from aperto.vet.pages import scorecard_page, verdict_page
from aperto.vet.protocol import Arm
from aperto.vet.report import Report
from aperto.vet.scorecard import make_scorecard

VOID = {"meta", "line", "circle", "path", "polyline"}


class Checker(html.parser.HTMLParser):
    """Collects texts and tags, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert not {"script", "img", "link", "iframe"} & set(checker.tags)
    assert not re.search(r"https?://|url\(|\bnan\b|\binf\b", page)
    return checker


def verdict_of(adapted: float, name: str = "bakery") -> str:
    frozen = protocol(
        suite("integrity", "integrity"), suite(margin=0.1), suite("shift", "capability"), name=name
    )
    seen = joined(sound(), arms("bread", 0.0, adapted), arms("shift", 0.1, 0.1))
    evidence = Evidence(frozen, seen)
    models = {Arm.BASE: {"name": "nano", "sha256": "ab" * 32}, Arm.ADAPTED: {"name": "<i>mine"}}
    return verdict_page(Report(decide(evidence), models))


@pytest.mark.parametrize(
    ("adapted", "word"), [(0.0, "PASS"), (0.1, "INCONCLUSIVE"), (0.5, "BLOCK")]
)
def test_a_verdict_is_shown(adapted: float, word: str):
    texts = checked(verdict_of(adapted)).texts
    assert word in texts and "bread, low" in texts
    assert ("Why" in texts) == (word != "PASS")


def test_texts_become_no_markup():
    page = verdict_of(0.5, "<script>alert(1)</script> & co")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;i&gt;mine" in page
    checked(page)


def test_a_scorecard_is_shown_with_its_published_figures_and_curve():
    made = joined(
        *(
            rows("gpqa_diamond", "m", first(share, 198), items=198, effort=effort, output_tokens=n)
            for share, effort, n in (
                (0.57, "low", 900),
                (0.66, "medium", 7000),
                (0.71, "high", 30_000),
            )
        )
    )
    card = make_scorecard(
        made, model="mine", arm="m", not_run={"hle": "data unavailable"}, manifest={"seed": 1}
    )
    checker = checked(scorecard_page(card))
    text = " ".join(checker.texts)
    assert "o4-mini (high)" in text and "within noise of" in text and "below" in text
    assert "hle: data unavailable" in text and checker.tags.count("polyline") == 1


def test_a_scorecard_of_unknown_suites_has_no_curve():
    card = make_scorecard(rows("own", "m", first(1.0)), model="mine", arm="m")
    checker = checked(scorecard_page(card))
    assert "polyline" not in checker.tags
    assert "None of these suites has published figures" in " ".join(checker.texts)


def places(svg: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf'{attribute}="(-?[\d.]+)"', svg)]


def test_nothing_is_drawn_outside():
    bars = [
        Bar("a", 0.0, -0.01, 0.01, "0", limit=0.02),
        Bar("b", 0.9, 0.5, 1.0, "0.9", marks=((-1.0, "far"),)),
    ]
    svg = intervals(bars, unit="points", zero=True)
    width = float(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
    for attribute in ("x1", "x2", "cx", "x"):
        assert all(0 <= value <= width for value in places(svg, attribute))


def test_equal_values_can_be_drawn():
    assert "<svg" in intervals([Bar("a", 0.5, 0.5, 0.5, "")], unit="x")
    point = Point("low", 100, 0.5, 0.4, 0.6)
    assert "<svg" in curve([point, point], title="t")

"""The page of an evaluation stands alone and takes no name for markup."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mitosis.detections import Detections
from mitosis.evaluation_page import EvaluationReport, draw_page
from mitosis.gallery import Mistake
from mitosis.hotspot_agreement import HotspotAgreement
from mitosis.ranking import SlideScores
from mitosis.scorecard import score_slides

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "path", "use", "rect", "line"}


@pytest.fixture(scope="module")
def report():
    found = Detections(np.array([(0.0, 0.0), (99.0, 0.0)]), np.array([0.9, 0.7]), np.zeros(2))
    slides = [SlideScores(name, 1.0, [(0, 0)], found, (), f"{name}{EVIL}", EVIL, 1.0) for name in ("one", EVIL)]
    card = score_slides(slides, {one.slide: 0.5 for one in slides}, readers={EVIL: {"one": [(0, 0)]}})
    return EvaluationReport(
        card,
        f"How {EVIL}.",
        {"true": [0.9], "false": [0.7]},
        [Mistake(EVIL, 1.0, 2.0, 0.0)],
        [Mistake("one", 1.0, 2.0, 0.7, True, "data:image/png;base64,AAAA")],
        [HotspotAgreement(EVIL, 0.5, 1, 2)],
        [f"Note {EVIL}."],
    )


class Tags(HTMLParser):
    """Sees that tags are closed in order; keeps their names."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):  # noqa: ARG002  # the base class's signature
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # noqa: ARG002  # the base class's signature
        self.seen.add(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_names_are_text(report):
    tags = Tags()
    tags.feed(draw_page(report))
    assert tags.open == []
    assert "script" not in tags.seen
    assert {"h1", "table", "svg", "img"} <= tags.seen


def test_the_page_needs_no_other_file(report):
    page = draw_page(report)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page
    assert "url(http" not in page


def test_the_headline_has_f1_and_its_interval(report):
    headline = re.search(r"<h1>(.*?)</h1>", draw_page(report))[1]
    assert headline == "F1 0.667 (0.667 to 0.667), precision 0.500, recall 1.000"


def test_sections_without_content_are_left_out(report):
    bare = replace(
        report, misses=(), alarms=(), hotspots=(), card=score_slides([], {}), scores={"true": [], "false": []}
    )
    page = draw_page(bare)
    assert "Worst" not in page
    assert "Hotspots" not in page
    assert "<svg" not in page
    assert "F1 1.000" in page  # of nothing, nothing is wrong

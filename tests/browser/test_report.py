"""Reports in a real browser: they make no requests, log no errors and are accessible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver import Chrome

from segan.report.write import write_report
from tests.browser.conftest import (
    console_messages,
    failed_requests,
    network_events,
    requested_urls,
    set_viewport,
)
from tests.report.tiny_study import TinyStudy

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def world(tiny_study: TinyStudy) -> TinyStudy:
    """The study with its report."""
    write_report(tiny_study.study)
    return tiny_study


@pytest.mark.parametrize("kind", ["study", "ensemble"])
def test_it_is_accessible_in_light_and_dark_and_on_a_phone(
    kind: str, world: TinyStudy, browser: Chrome, violations: Callable[[], list[str]]
) -> None:
    page = f"file://{getattr(world, kind)}/report.html"
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            set_viewport(browser, width, scheme)
            browser.get(page)
            events = network_events(browser)
            assert requested_urls(events) == [page]
            assert failed_requests(events) == []
            assert console_messages(browser) == []
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, "the page is wider than the window"
            assert violations() == []


def test_its_images_are_shown_with_outlines(world: TinyStudy, browser: Chrome) -> None:
    browser.get(f"file://{world.study}/report.html")
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('svg.case')].map(svg => "
        "[svg.querySelector('image').getBBox(), svg.querySelectorAll('path').length])"
    )
    assert len(boxes) == 6
    for box, outlines in boxes:
        assert (box["width"], box["height"]) == (80, 64)
        assert 1 <= outlines <= 2
    # The image is decoded.
    size = browser.execute_async_script(
        "const done = arguments[0], image = new Image();"
        "image.onload = () => done([image.naturalWidth, image.naturalHeight]);"
        "image.onerror = () => done(null);"
        "image.src = document.querySelector('svg.case image').href.baseVal"
    )
    assert size == [80, 64]


def test_the_dark_scheme_is_dark(world: TinyStudy, browser: Chrome) -> None:
    shades = []
    for scheme in ("light", "dark"):
        set_viewport(browser, 1280, scheme)
        browser.get(f"file://{world.study}/report.html")
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        shades.append(sum(int(part) for part in colour[4:-1].split(",")))
    assert shades[0] > 700
    assert shades[1] < 100

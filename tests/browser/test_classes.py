"""The page and the report of a model with several classes in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from segan.inference.predictor import Predictor
from tests.browser.conftest import console_messages, failed_requests, network_events, set_viewport
from tests.inference.models import FRAME, untrained_predictor
from tests.serving.test_web import running_app

pytestmark = pytest.mark.browser

LABELS, THRESHOLDS, TIMEOUT_S = ("streaks", "globules", "milia_like_cyst"), (0.4, 0.5, 0.6), 20
predictor = Predictor(
    untrained_predictor((0, 1, 2), LABELS).members, FRAME, THRESHOLDS, "three classes", LABELS
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_app("", model=predictor) as found:
        yield found


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 131, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def wait_for(page: Chrome, ready: Callable[[], object]) -> None:
    WebDriverWait(page, TIMEOUT_S, 0.05).until(lambda _: ready())


def text(page: Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def is_segmented(page: Chrome) -> bool:
    return text(page, "status") == "a.png: segmented."


def test_each_class_is_chosen_on_the_page(
    address: str,
    photograph: Path,
    browser: Chrome,
    downloads: Path,
    violations: Callable[[], list[str]],
) -> None:
    browser.get(address)
    wait_for(browser, lambda: browser.find_element(By.ID, "upload").is_displayed())
    browser.find_element(By.ID, "file").send_keys(str(photograph))
    wait_for(browser, lambda: is_segmented(browser))
    expected, canvases = predictor(Image.open(photograph)), set[bytes]()
    for name, threshold in zip(LABELS, THRESHOLDS, strict=True):
        select = Select(browser.find_element(By.ID, "class"))
        assert [option.text for option in select.options] == [*LABELS]
        if name != LABELS[0]:
            select.select_by_visible_text(name)
            wait_for(
                browser,
                lambda t=threshold: (
                    is_segmented(browser) and text(browser, "threshold-value") == str(t)
                ),  # type: ignore[misc]
            )
        assert text(browser, "area-name") == f"Area of {name}"
        assert text(browser, "area") == f"{expected[name].mask.sum():,} px"
        assert text(browser, "reset-threshold") == f"Reset to the model's {threshold}"
        canvases.add(browser.find_element(By.ID, "canvas").screenshot_as_png)
        assert violations() == []
    assert len(canvases) == len(LABELS), "each class has outlines of its own"
    browser.find_element(By.ID, "download").click()
    file = downloads / f"a_{LABELS[-1]}_segmentation.png"
    wait_for(browser, file.exists)
    np.testing.assert_array_equal(np.asarray(Image.open(file)) > 0, expected[LABELS[-1]].mask)
    assert failed_requests(network_events(browser)) == []
    assert console_messages(browser) == []


def test_the_page_fits_a_phone(address: str, photograph: Path, browser: Chrome) -> None:
    set_viewport(browser, 390, "dark")
    browser.get(address)
    wait_for(browser, lambda: browser.find_element(By.ID, "upload").is_displayed())
    browser.find_element(By.ID, "file").send_keys(str(photograph))
    wait_for(browser, lambda: is_segmented(browser))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390

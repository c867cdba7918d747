"""The page of a served model in a real browser."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from segan.cli.main import main
from segan.data.synthetic import generate_archive
from tests.browser.conftest import (
    TOKEN,
    console_messages,
    failed_requests,
    network_events,
    requested_urls,
    set_viewport,
)
from tests.browser.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.cluster]

TIMEOUT_S = 20


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A real image, or a synthetic one if there are no real data."""
    try:
        isic2017 = request.getfixturevalue("isic2017")
    except pytest.skip.Exception:
        folder = tmp_path_factory.mktemp("synthetic")
        generate_archive({"train": 1}, 0, lambda name, body: _write(folder / name, body), 64)
        return min(folder.rglob("*.jpg"))
    return min((isic2017 / "ISIC-2017_Validation_Data").glob("*.jpg"))


@pytest.fixture
def page(browser: Chrome, server: Server) -> Chrome:
    """The page after the login."""
    browser.get(server.address)
    browser.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)
    _wait(browser, lambda: browser.find_element(By.ID, "upload").is_displayed())
    return browser


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def _wait(browser: Chrome, ready: Callable[[], object]) -> None:
    WebDriverWait(browser, TIMEOUT_S, 0.05).until(lambda _: ready())


def upload(page: Chrome, path: Path) -> str:
    """Uploads a file and waits for the result; returns the error that is shown."""
    page.find_element(By.ID, "file").send_keys(str(path))
    _wait(page, lambda: text(page, "error") or page.find_element(By.ID, "result").is_displayed())
    return text(page, "error")


def text(page: Chrome, name: str) -> str:
    return page.find_element(By.ID, name).text


def press_keys(page: Chrome, keys: str) -> None:
    page.find_element(By.ID, "threshold").send_keys(keys)


def canvas_screenshot(page: Chrome) -> bytes:
    """The canvas as a PNG."""
    return page.find_element(By.ID, "canvas").screenshot_as_png


def predict_mask(model: str, image: Path, threshold: float, folder: Path) -> np.ndarray:
    """The mask that `segan predict` writes for an image at a threshold."""
    arguments = [
        "predict",
        model,
        str(image),
        str(folder),
        "--local",
        "--threshold",
        str(threshold),
    ]
    assert main(arguments) == 0
    return np.asarray(Image.open(folder / f"{image.stem}_segmentation.png"))


def test_the_downloaded_mask_equals_that_of_the_command(
    page: Chrome, server: Server, model: str, photograph: Path, downloads: Path, tmp_path: Path
) -> None:
    assert upload(page, photograph) == ""
    with Image.open(photograph) as image:
        assert f"{image.width} x {image.height}" in text(page, "name")
    first, network_so_far = canvas_screenshot(page), network_events(page)
    assert text(page, "threshold-value") == "0.485"
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(first))))) > 100  # the image is shown

    press_keys(page, Keys.ARROW_RIGHT * 3)
    assert text(page, "threshold-value") == "0.5"
    assert canvas_screenshot(page) != first
    assert requested_urls(network_events(page)) == []  # the outline is computed in the browser

    page.find_element(By.ID, "download").click()
    saved = downloads / f"{photograph.stem}_segmentation.png"
    _wait(page, saved.exists)
    expected = predict_mask(model, photograph, 0.5, tmp_path)
    with Image.open(saved) as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected)
    assert text(page, "area") == f"{(expected > 0).sum():,} px"
    assert text(page, "area-fraction") == f"{100 * (expected > 0).mean():.1f} %"

    page.find_element(By.ID, "reset-threshold").click()
    assert (text(page, "threshold-value"), canvas_screenshot(page)) == ("0.485", first)

    events = [*network_so_far, *network_events(page)]
    assert failed_requests(events) == []
    assert all(url.startswith(server.address) for url in requested_urls(events))
    assert console_messages(page) == []


def test_members_and_layers_can_be_shown(page: Chrome, photograph: Path) -> None:
    upload(page, photograph)
    screenshots = [canvas_screenshot(page)]
    boxes = page.find_elements(By.CSS_SELECTOR, "#members input")
    assert len(boxes) == 3
    layers = page.find_elements(By.CSS_SELECTOR, "[name=layer]")
    for control in (*boxes, *layers[1:], page.find_element(By.ID, "model-contour")):
        control.click()
        screenshots.append(canvas_screenshot(page))
    assert len(set(screenshots)) == len(screenshots)
    assert text(page, "disagreement").endswith("of the pixels marked by any")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "lesion.jpg"
    path.write_text("no image at all")
    return path


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)
    return path


def test_a_rejected_image_does_not_affect_the_next_one(
    page: Chrome, text_file: Path, bomb: Path, photograph: Path
) -> None:
    message = "lesion.jpg: expected an image, found 15 bytes of another format"
    assert upload(page, text_file) == message
    assert not page.find_element(By.ID, "result").is_displayed()
    page.find_element(By.ID, "file").send_keys(str(bomb))
    _wait(page, lambda: text(page, "error").startswith("bomb.png: too large for a photograph"))
    page.find_element(By.ID, "file").send_keys(str(photograph))
    _wait(page, lambda: page.find_element(By.ID, "result").is_displayed())
    assert text(page, "error") == ""


def test_a_wrong_token_is_rejected_and_the_right_one_accepted(
    browser: Chrome, server: Server
) -> None:
    browser.get(server.address)
    token = browser.find_element(By.ID, "token")
    token.send_keys("not the right one", Keys.ENTER)
    _wait(browser, lambda: text(browser, "error") == "Invalid token.")
    assert not browser.find_element(By.ID, "upload").is_displayed()
    token.clear()
    token.send_keys(TOKEN, Keys.ENTER)
    _wait(browser, lambda: browser.find_element(By.ID, "upload").is_displayed())
    assert text(browser, "error") == ""


def test_all_controls_are_reached_by_keyboard_in_order(page: Chrome, photograph: Path) -> None:
    upload(page, photograph)
    press_keys(page, Keys.ARROW_RIGHT)  # enables the reset button
    page.execute_script("document.getElementById('file').focus()")
    reached = []
    for _ in range(8):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        reached.append(focused.get_attribute("id") or focused.get_attribute("type"))
        style = focused.value_of_css_property("outline-style")
        assert style == "solid", f"the focus on {reached[-1]} is not visible"
    boxes = ["model-contour", "checkbox", "checkbox", "checkbox"]
    assert reached == ["threshold", "reset-threshold", "radio", *boxes, "download"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible(
    page: Chrome,
    photograph: Path,
    violations: Callable[[], list[str]],
    width: int,
    scheme: str,
) -> None:
    set_viewport(page, width, scheme)
    assert violations() == []
    upload(page, photograph)
    assert violations() == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    live = page.find_element(By.ID, "status")
    assert (live.get_attribute("role"), live.text) == ("status", f"{photograph.name}: segmented.")
    label = page.find_element(By.ID, "canvas").get_attribute("aria-label")
    assert text(page, "area").removesuffix(" px") in label


def test_the_api_docs_request_nothing_from_other_hosts(
    browser: Chrome, server: Server, violations: Callable[[], list[str]]
) -> None:
    browser.get(f"{server.address}/docs")
    assert "POST /v1/segment" in browser.find_element(By.TAG_NAME, "main").text
    assert violations() == []
    events = network_events(browser)
    assert failed_requests(events) == []
    assert all(url.startswith(server.address) for url in requested_urls(events))
    assert console_messages(browser) == []

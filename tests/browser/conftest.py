"""A real Chromium with its network events and console, and the accessibility checks of axe-core."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from segan.runs.run import Run
from tests.browser.server import Server, running_server, write_test_ensemble
from tests.inference.models import save_checkpoint, small_config

TOKEN = "the token of the tests"
AXE = Path(__file__).parents[2] / ".local/axe/node_modules/axe-core/axe.min.js"
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves the machine
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an ensemble of three members with random weights, which differ on any image."""
    folder = tmp_path_factory.mktemp("model")
    run = Run(str(folder / "run"))
    for epoch, threshold in ((1, 0.45), (2, 0.5), (3, 0.55)):
        save_checkpoint(run, small_config(), epoch, 0.5, threshold)
    checkpoints = [run.get_checkpoint(f"epoch_{epoch:05d}") for epoch in (1, 2, 3)]
    write_test_ensemble(str(folder / "ensemble"), checkpoints, 0.485)
    return str(folder / "ensemble")


@pytest.fixture(scope="package")  # stopped before the tests of other clusters
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`segan serve` with that model and a token, on a local Ray."""
    with running_server(model, tmp_path_factory.mktemp("serve") / "log", TOKEN) as found:
        yield found


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The browser's download folder."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def chromium(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Debian's Chromium without a window; skips the test if it is not installed."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for switch in (f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", *SWITCHES):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = Chrome(options, ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Chrome:
    """The browser with an empty page of 1280 pixels, in light mode, with empty logs."""
    set_viewport(chromium)
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium


def set_viewport(
    browser: Chrome, width: int = 1280, scheme: str = "light", height: int = 900
) -> None:
    """Sets the size in pixels and the color scheme, "light" or "dark"; a phone up to 500."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width <= 500},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def screenshot(browser: Chrome, path: Path) -> None:
    """Saves an image of the entire page."""
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(shot["data"]))


def network_events(browser: Chrome) -> list[dict[str, Any]]:
    """The DevTools network events since the last call."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [entry for entry in entries if entry["method"].startswith("Network.")]


def requested_urls(events: list[dict[str, Any]]) -> list[str]:
    """The requested URLs, without those inside the page."""
    sent = [e["params"]["request"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [one["url"] for one in sent if not one["url"].startswith(("data:", "blob:", "about:"))]


def failed_requests(events: list[dict[str, Any]]) -> list[Any]:
    """Requests without a response, and responses with an error status."""
    lost = [e["params"] for e in events if e["method"] == "Network.loadingFailed"]
    answers = [e["params"]["response"] for e in events if e["method"] == "Network.responseReceived"]
    return lost + [one["url"] for one in answers if one["status"] >= 400]


def console_messages(browser: Chrome) -> list[str]:
    """The console's messages since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]


@pytest.fixture
def violations(browser: Chrome) -> Callable[[], list[str]]:
    """Returns axe-core's serious and critical violations; skips the test if it is not installed."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm install --prefix .local/axe axe-core")

    def check() -> list[str]:
        browser.execute_script(AXE.read_text(encoding="utf-8"))
        script = "const done = arguments[0]; axe.run().then(found => done(found.violations))"
        found = browser.execute_async_script(script)
        return [
            f"{one['id']}: {one['help']} ({node['html']})"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    return check

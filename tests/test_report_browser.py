"""The report in a real browser: Chromium, driven by Selenium. Skipped where either is missing."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import call, save_npz, save_source
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of gates that were trained for an epoch."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_npz(Path("data.npz"))
        call("attach", save_source(Path("r20.pt")), "--method", "aig-perbatch", "--input-size", 8)
        call("finetune", "--data", "npz:data.npz", "--epochs", 1)
        call("report", "--runtime", "none")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser: Any, page: Path, *, width: int, dark: bool = False) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


def seen(browser: Any) -> np.ndarray[Any, Any]:
    """The window's pixels, grey."""
    picture = base64.b64decode(browser.get_screenshot_as_base64())
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"), dtype=float)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_says_nothing_to_the_console(
    browser: Any, page: Path, width: int
) -> None:
    show(browser, page, width=width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    headings = [each.text for each in browser.find_elements("css selector", "h2")]
    assert headings[:3] == ["Before and after", "What was done", "The network"]
    for drawing in browser.find_elements("tag name", "svg"):
        assert drawing.size["width"] > 200 and drawing.size["height"] > 50
        assert drawing.find_elements("css selector", "path, image")


def test_light_and_dark(browser: Any, page: Path) -> None:
    """Mostly paper with some ink on it, and the other way round."""
    for dark in (False, True):
        show(browser, page, width=1280, dark=dark)
        pixels = 255 - seen(browser) if dark else seen(browser)
        assert np.median(pixels) > 225 and 0.005 < (pixels < 128).mean() < 0.2


def test_the_keyboard_alone(browser: Any, page: Path) -> None:
    """The first stop is the way past the menu, and what scrolls can be reached."""
    show(browser, page, width=400)
    browser.switch_to.active_element.send_keys("\ue004")
    first = browser.switch_to.active_element
    assert first.get_attribute("class") == "skip" and first.location["x"] >= 0
    first.send_keys("\ue007")
    assert browser.switch_to.active_element.get_attribute("id") == "content"
    for each in browser.find_elements("css selector", ".scroll"):
        assert each.get_attribute("tabindex") == "0" and each.accessible_name

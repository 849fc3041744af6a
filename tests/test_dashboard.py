"""The dashboard in headless Chromium (Debian's: apt-get install chromium chromium-driver)."""

from __future__ import annotations

import os
import shutil
import time

import httpx2 as httpx
import pytest

from production.api_kpi import EXAMPLE
from tests.service_process import ServiceProcess
from tests.test_service import batch
from tests.test_store import samples_csv

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@pytest.fixture
def browser(tmp_path):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def until(what, seconds: float = 40):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


class Page:
    """What a person sees and does."""

    def __init__(self, browser) -> None:
        self.browser = browser

    def text(self, selector: str) -> str:
        return self.browser.execute_script(
            "return document.querySelector(arguments[0])?.textContent || ''", selector
        )

    def press(self, selector: str) -> None:
        """By the keyboard: focus and Enter, as someone without a mouse."""
        from selenium.webdriver.common.keys import Keys

        until(
            lambda: self.browser.execute_script(
                "const e = document.querySelector(arguments[0]); if (e && !e.disabled) e.focus();"
                " return e !== null && document.activeElement === e",
                selector,
            )
        )
        self.browser.switch_to.active_element.send_keys(Keys.ENTER)

    def sequence(self) -> int:
        return int(self.browser.execute_script("return plot.dataset.seq || 0"))


def test_dashboard_is_followed_judged_and_trained_from(browser, tmp_path):
    folder = tmp_path / "service"
    folder.mkdir()
    token = "t" * 20
    with (
        ServiceProcess(folder, ANOMALY_TOKEN=token) as service,
        httpx.Client(base_url=service.url, auth=("", token), timeout=30) as client,
    ):
        client.put("/v1/streams/boiler-7", json={"detector": "tiles"})
        odd = [float(i % 7) for i in range(250)] + [99.0]
        client.post("/v1/streams/boiler-7/records", content=batch(odd))
        client.post("/PredictValue", json={**EXAMPLE, "attrName": "login requests"})
        client.post("/ImportSample", files={"sample_file": ("s.csv", samples_csv(40))})
        assert httpx.get(service.url).status_code == 401

        browser.get(service.url.replace("://", f"://user:{token}@"))
        browser.get(service.url)
        page = Page(browser)
        until(lambda: page.sequence() == 251)
        assert page.text("#chart-title") == "boiler-7"
        until(lambda: browser.execute_script("return plot.querySelectorAll('rect.odd').length"))

        client.post("/v1/streams/boiler-7/records", content=batch([1.0, 2.0], start=251))
        until(lambda: page.sequence() == 253)  # without reloading

        until(lambda: "login requests" in page.text("#anomaly-rows"))
        [found] = client.post("/SearchAnomaly", json={"kind": "value"}).json()["data"][
            "anomalyList"
        ]
        page.press(f"[data-act='mark {found['id']} 2']")
        until(lambda: page.text(f"[data-act='mark {found['id']} 2'][aria-pressed=true]"))
        assert "41 samples" in until(
            lambda: "41" in page.text("#samples") and page.text("#samples")
        )

        browser.execute_script("document.getElementById('window').value = '20'")
        page.press("#train")
        until(lambda: "done" in page.text("#task-rows"), 90)
        page.press("#task-rows button")
        until(lambda: "task" in page.text("#promoted"))
        assert client.get("/v1/promotion").json()["taskId"] in page.text("#promoted")
        page.press("#rollback")
        until(lambda: "shipped" in page.text("#promoted"))

        for width, height in ((1280, 900), (390, 844)):
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            time.sleep(0.3)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            if folder_of_pictures := os.environ.get("ANOMALY_TEST_PICTURES"):
                whole = {"format": "png", "captureBeyondViewport": True}
                picture = browser.execute_cdp_cmd("Page.captureScreenshot", whole)["data"]
                write_picture(folder_of_pictures, f"dashboard-{width}", picture)
                emulate_dark(browser)
                picture = browser.execute_cdp_cmd("Page.captureScreenshot", whole)["data"]
                write_picture(folder_of_pictures, f"dashboard-{width}-dark", picture)
                emulate_dark(browser, "light")

        severe = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        assert severe == []
        requests = [e["message"] for e in browser.get_log("performance")]
        sent = [m for m in requests if '"Network.requestWillBeSent"' in m]
        assert sent
        outside = [
            m
            for m in sent
            if service.url not in m and '"url":"data:' not in m and "chrome://" not in m
        ]
        assert all(f"127.0.0.1:{service.port}" in m for m in outside)


def emulate_dark(browser, scheme: str = "dark") -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    time.sleep(0.3)


def write_picture(folder: str, name: str, data: str) -> None:
    import base64
    from pathlib import Path

    Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))

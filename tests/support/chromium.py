"""Headless Chromium by its WebDriver: as much of it as the tests of the page use."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,900"),
)


class Browser:
    """A WebDriver session."""

    def __init__(self, driver: str, binary: str) -> None:
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        port = next(int(m[1]) for line in self.process.stdout if (m := re.search(r"on port (\d{2,})", line)))
        self.base = f"http://127.0.0.1:{port}"
        options = {"goog:chromeOptions": {"binary": binary, "args": FLAGS}, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self.base += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path, address: str = "") -> None:
        self.call("POST", "/url", {"url": "about:blank"})  # an address with another hash alone would not load again
        self.call("POST", "/url", {"url": path.as_uri() + address})
        self.until("return 'ready' in document.documentElement.dataset", "the page does not come up")

    def reload(self) -> None:
        """As a reader does. To leave the page at once may end its process before what it stored has left it."""
        self.call("POST", "/refresh", {})
        self.until("return 'ready' in document.documentElement.dataset", "the page does not come up again")

    def until(self, code: str, complaint: str) -> None:
        """Waits for what the browser does in its own time."""
        for _ in range(500):
            if self.js(code):
                return
            time.sleep(0.02)
        pytest.fail(f"{complaint}: {self.call('POST', '/se/log', {'type': 'browser'})}")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", {"script": code, "args": arguments})

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def choose(self, name: str, value: str) -> None:
        find = "const s = document.getElementById(arguments[0]);"
        self.js(f"{find} s.value = arguments[1]; s.dispatchEvent(new Event('change'))", name, value)

    def write(self, selector: str, text: str) -> None:
        find = "const i = document.querySelector(arguments[0]);"
        self.js(f"{find} i.value = arguments[1]; i.dispatchEvent(new Event('input'))", selector, text)

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def width(self, pixels: int) -> None:
        size = {"width": pixels, "height": 850, "deviceScaleFactor": 1, "mobile": False}
        self.cdp("Emulation.setDeviceMetricsOverride", **size)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.cdp("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text, windowsVirtualKeyCode=code)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", selector)

    def scheme(self, name: str) -> None:
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def close(self) -> None:
        self.call("DELETE", "")
        self.process.terminate()
        self.process.wait(timeout=20)


def launched() -> Iterator[Browser]:
    """One session; skips by name where there is no browser."""
    driver = shutil.which("chromedriver")
    binary = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if driver is None or binary is None:
        message = "chromium or chromedriver is missing; on Debian: apt-get install chromium chromium-driver"
        if os.environ.get("PRMBENCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    session = Browser(driver, binary)
    yield session
    session.close()


def payload(site: Path) -> dict[str, Any]:
    """The page's data, each benchmark with its traces, runs and figures."""
    html = site.read_text()
    data, bulk = (html.partition(f'id="{name}">')[2].partition("</script>")[0] for name in ("data", "bulk"))
    found = json.loads(data)
    packed = json.loads(gzip.decompress(base64.b64decode(bulk)))
    return found | {"benchmarks": [a | b for a, b in zip(found["benchmarks"], packed, strict=True)]}

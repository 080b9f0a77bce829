"""A headless Chromium that tests look at pages with, by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread
from patience import patience

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NEEDED = "STACKELBERG_NEED_BROWSER"  # where it is 1, a missing browser is a failure and no skip
LOADING = 30.0  # seconds for which a page may load on a machine of its own
FLAGS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--mute-audio",
    ),
    *("--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb"),
)


def find() -> str | None:
    """Return the path of a browser that runs, CHROME's before others. Ubuntu's, which asks for a snap, does not."""
    for name in (os.environ.get("CHROME"), *NAMES):
        path = shutil.which(name) if name else None
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


@dataclass
class View:
    """A page as the browser shows it.

    Attributes:
        console: messages of the console and errors of the page.
        requests: addresses that were asked for.
    """

    browser: Browser
    session: str
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        """Return what JavaScript evaluates to, as JSON."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file and wait until it is."""
        address = path.resolve().as_uri()
        self.call("Page.navigate", url=address)
        # the first answers may still be of the page before
        ready = f"document.readyState === 'complete' && location.href === {json.dumps(address)}"
        limit = patience(LOADING)
        until = None if limit is None else time.monotonic() + limit
        while not self.evaluate(ready):
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"{path} is still loading")
            time.sleep(0.02)

    def screenshot(self, path: Path | None = None) -> np.ndarray:
        """Return the whole page, uint8 [height, width, 3]; also write it as a PNG."""
        content = base64.b64decode(
            self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        )
        if path is not None:
            path.write_bytes(content)
        return pixels(content)

    def move(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)


class Browser:
    """Context manager: a browser without windows, with a profile of its own.

    Args:
        executable: of a Chromium.
        profile: an empty folder.
    """

    def __init__(self, executable: str, profile: Path) -> None:
        self._read, theirs_out = os.pipe()
        theirs_in, self._write = os.pipe()
        # the browser reads from descriptor 3 and writes to 4
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", shell, "browser", executable, *FLAGS]
        self.errors = profile / "stderr"
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs_in, theirs_out),
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._buffer = itertools.count(1), b""
        self._views: dict[str, View] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(timeout=patience(5))
        except (OSError, EOFError, subprocess.TimeoutExpired):
            pass
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._read)
            os.close(self._write)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], patience(LOADING))[0]:
                raise TimeoutError("the browser says nothing")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError(
                    f"the browser ended: {self.errors.read_text(errors='replace')[-2000:]}"
                )
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        view = self._views.get(event.get("sessionId", ""))
        if view is None:
            return
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            view.requests.append(params["request"]["url"])
        elif event["method"] == "Runtime.consoleAPICalled":
            view.console.append(json.dumps(params["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            view.console.append(json.dumps(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded":
            view.console.append(params["entry"]["text"])

    @contextmanager
    def view(self, width: int, height: int = 900, dark: bool = False) -> Iterator[View]:
        """A tab of some CSS pixels, as on a phone below 600."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        view = View(self, found["sessionId"])
        self._views[view.session] = view
        for domain in ("Page", "Runtime", "Log", "Network"):
            view.call(f"{domain}.enable")
        phone = width < 600
        view.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        view.call("Emulation.setEmulatedMedia", features=[scheme])
        yield view
        self.call("Target.closeTarget", targetId=target)


def pixels(png: bytes) -> np.ndarray:
    """Decode a PNG: uint8 [height, width, 3]."""
    image = imread(io.BytesIO(png), format="png")
    return (255 * image[..., :3]).round().astype(np.uint8)

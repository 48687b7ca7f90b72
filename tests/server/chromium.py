"""Headless Chromium, driven over the DevTools protocol: as much of it as the page's tests need."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import connect

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)
TIMEOUT_S = 30.0
CTRL, SHIFT = 2, 8
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, None),
    "ArrowUp": (38, None),
    "ArrowLeft": (37, None),
    "ArrowRight": (39, None),
    "Tab": (9, None),
}


class PageError(AssertionError):
    """What a page was asked did not come true, or threw."""


class Chromium:
    """A browser with a profile of its own. Use it in a `with` block."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._stack = contextlib.ExitStack()
        self._next_id = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        assert PROGRAM is not None
        with self._stack as stack:
            process = stack.enter_context(
                subprocess.Popen(
                    [PROGRAM, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(process.kill)
            url = _devtools_url(self._profile / "DevToolsActivePort")
            self._socket = stack.enter_context(connect(url, max_size=None, proxy=None))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def page(self) -> Page:
        """A new tab in a context of its own: no storage is shared with other tabs."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        return self.tab(context)

    def tab(self, context: str) -> Page:
        """A new tab in a context that exists."""
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        target_id = target["targetId"]
        session = self.call("Target.attachToTarget", targetId=target_id, flatten=True)["sessionId"]
        return Page(self, session, target_id, context)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Result of one command. Raises PageError where the browser refuses it."""
        self._next_id += 1
        message: dict[str, Any] = {"id": self._next_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=TIMEOUT_S))
            if answer.get("id") == self._next_id:
                break
            self._events.append(answer)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def events(self, session: str, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of a tab that came so far."""
        self.call("Browser.getVersion")  # reads what is waiting
        return [
            event["params"]
            for event in self._events
            if event.get("sessionId") == session and event["method"] == method
        ]


def _devtools_url(port_file: Path) -> str:
    """Address of a browser that is starting; it writes port and path into a file."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if port_file.exists() and len(lines := port_file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise PageError("Chromium did not open its DevTools port")


class Page:
    """A tab."""

    def __init__(self, browser: Chromium, session: str, target: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        self.context = context
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.view(1280, 800)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Result of a DevTools command for this tab."""
        return self._browser.call(method, self._session, **params)

    def view(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        """Set the size of the window, and whether it is one that is touched."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=phone,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str) -> None:
        """Let the system ask for "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Go to a URL and wait until the page has started."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.title !== ''")

    def reload(self) -> None:
        """Load the page again."""
        self.run("window.isOld = true")
        self.call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete' && document.title !== ''")

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script, awaitPromise=True, returnByValue=True, userGesture=True,
        )  # fmt: skip
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, condition: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a JavaScript expression is true. Raises PageError where it stays false."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if self.run(f"Boolean({condition})"):
                    return
            except PageError as error:
                if "context" not in str(error):  # a navigation may be under way
                    raise
            time.sleep(0.02)
        raise PageError(
            f"not true within {timeout_s:g} s: {condition}\n{self.text('body')[-2000:]}"
        )

    def text(self, selector: str) -> str:
        """Visible text of the first match; empty where there is none."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def count(self, selector: str) -> int:
        """How many elements match."""
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def click(self, selector: str) -> None:
        """Click the middle of the first match, as a mouse does."""
        quoted = json.dumps(selector)
        self.wait(f"document.querySelector({quoted})")
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})(document.querySelector({quoted}))"
        )
        self.hover(*box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=box[0], y=box[1], button="left", clickCount=1,
            )  # fmt: skip

    def hover(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        """Insert text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), None)
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        down = {"text": text} if text and not modifiers & CTRL else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def say(self, text: str) -> None:
        """Write a message and send it."""
        self.run("document.getElementById('input').focus()")
        self.type(text)
        self.press("Enter")

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what is seen."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def events(self, method: str) -> list[dict[str, Any]]:
        """Parameters of this tab's events of one kind so far."""
        return self._browser.events(self._session, method)

    def complaints(self) -> list[str]:
        """Errors in the console: exceptions, blocked content, failed requests."""
        logged = [event["entry"] for event in self.events("Log.entryAdded")]
        thrown = [event["exceptionDetails"] for event in self.events("Runtime.exceptionThrown")]
        return [
            *(entry["text"] for entry in logged if entry["level"] == "error"),
            *(str(details.get("exception", details).get("description")) for details in thrown),
        ]

    def close(self) -> None:
        """Close the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)

"""A real browser, driven over its own protocol by a pipe: pages as a person sees them."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextlib.contextmanager
def opened(address, folder, *flags, size=(900, 1000)):
    """A page of the address in a browser whose profile lies in the folder."""
    of_browser, to_us = os.pipe(), os.pipe()
    profile = f"--user-data-dir={folder / 'profile'}"
    arguments = [*FLAGS, "--remote-debugging-pipe", f"--window-size={size[0]},{size[1]}", profile]
    # The browser reads from its descriptor 3 and writes to 4.
    script = f'exec "$@" 3<&{of_browser[0]} 4>&{to_us[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", BROWSER, *arguments, *flags, "about:blank"],
        pass_fds=(of_browser[0], to_us[1]),
        stderr=subprocess.DEVNULL,
    )
    os.close(of_browser[0])
    os.close(to_us[1])
    try:
        page = Page(to_us[0], of_browser[1])
        page.open(address)
        yield page
    finally:
        process.terminate()
        process.wait(20)
        os.close(of_browser[1])
        os.close(to_us[0])


class Page:
    """A page: `evaluate` runs JavaScript in it, `told` is what went wrong."""

    def __init__(self, reads, writes):
        self._reads, self._writes, self._buffer, self._number = reads, writes, b"", 0
        self._session = None
        self.told, self.fetched = [], []
        (target, *_) = [
            each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, seconds=60, **parameters):
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            answer = self._next(until)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer)

    def open(self, address):
        """Goes to an address, and waits until the page is loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script):
        """The value of an expression, awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition, seconds=30):
        """Waits until an expression is true."""
        until = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < until, f"it never came to be: {condition}; {self.told}"
            time.sleep(0.05)

    def hover(self, selector):
        """Moves the pointer onto an element."""
        place = self.evaluate(
            f"(() => {{ const of = document.querySelector({selector!r}).getClientRects()[0];"
            " return [of.x + of.width / 2, of.y + of.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    def click(self, selector):
        """Clicks an element with the pointer."""
        self.hover(selector)
        at = self.evaluate(
            f"(() => {{ const of = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [of.x + of.width / 2, of.y + of.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1
            )

    def type(self, selector, text):
        """Replaces what a field holds, as if it were typed."""
        self.evaluate(f"(() => {{ const f = document.querySelector({selector!r});"
                      " f.focus(); f.select(); })()")  # fmt: skip
        self.call("Input.insertText", text=text)

    def picture(self, path):
        """Writes what is seen as a PNG."""
        made = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(made["data"]))

    def _next(self, until):
        while b"\0" not in self._buffer:
            left = until - time.monotonic()
            assert left > 0 and select.select([self._reads], [], [], left)[0], "no answer"
            came = os.read(self._reads, 1 << 20)
            assert came, "the browser ended"
            self._buffer += came
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _hear(self, event):
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.told.append(parameters["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled":
                self.told.append(str([each.get("value") for each in parameters["args"]]))
            case "Log.entryAdded":
                self.told.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.fetched.append(parameters["request"]["url"])

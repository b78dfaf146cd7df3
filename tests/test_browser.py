"""The user's acceptance case in a real browser: two windows on one topic, and one that was cut resumes.

Chromium is driven over its DevTools protocol, with the WebSocket library that Hypercorn brings.
"""

import http.server
import json
import re
import shutil
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from servers import HOST, PROJECT, Process, free_port, run_app, run_redis, wait_until
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request, TextMessage

from app.publish import publish_topic_event_sync

CHROMIUM = shutil.which("chromium")
ANSWER_TIMEOUT_S = 10

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"
)


class Chromium(Process):
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__(
            "chromium",
            folder,
            [
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={folder / 'profile'}",
                f"--remote-debugging-port={self.port}",
                "about:blank",
            ],
            {"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        )

    def is_ready(self) -> bool:
        try:
            self.ask("/json/version", "GET")
        except OSError:
            return False
        return True

    def ask(self, path: str, method: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return json.load(answer)

    def close(self) -> None:
        """Also the processes it started."""
        try:
            url = self.ask("/json/version", "GET")["webSocketDebuggerUrl"]
            with socket.create_connection(("127.0.0.1", self.port), ANSWER_TIMEOUT_S) as connection:
                Window(connection, url).call("Browser.close")
            self.wait_ended()
        finally:
            self.kill()

    @contextmanager
    def window(self, url: str) -> Iterator["Window"]:
        target = self.ask(f"/json/new?{quote(url)}", "PUT")
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_TIMEOUT_S) as connection:
            yield Window(connection, target["webSocketDebuggerUrl"])


class Window:
    def __init__(self, connection: socket.socket, url: str) -> None:
        self._connection = connection
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._calls = 0
        self._text = ""
        host, _, path = url.removeprefix("ws://").partition("/")
        connection.sendall(self._protocol.send(Request(host=host, target=f"/{path}")))
        assert isinstance(self._next_event(), AcceptConnection)

    def call(self, method: str, **params: Any) -> Any:
        self._calls += 1
        call = {"id": self._calls, "method": method, "params": params}
        self._connection.sendall(self._protocol.send(Message(data=json.dumps(call))))
        while True:
            event = self._next_event()
            if isinstance(event, TextMessage):
                self._text += event.data
                if event.message_finished:
                    answer, self._text = json.loads(self._text), ""
                    if answer.get("id") == self._calls:
                        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def click(self, element: str) -> None:
        self.evaluate(f"document.getElementById('{element}').click()")

    def type(self, element: str, text: str) -> None:
        self.evaluate(f"document.getElementById('{element}').value = {json.dumps(text)}")

    def publish(self, resource_id: str) -> None:
        self.type("thing", resource_id)
        self.evaluate("document.getElementById('publish-form').requestSubmit()")

    @property
    def rows(self) -> str:
        self.call("Page.bringToFront")  # a window in the background draws nothing
        return self.evaluate("document.getElementById('rows')?.innerText ?? ''")

    @property
    def status(self) -> str:
        return self.evaluate("document.getElementById('status')?.innerText ?? ''")

    def _next_event(self) -> Any:
        while True:
            for event in self._protocol.events():
                return event
            self._protocol.receive_data(self._connection.recv(1 << 16))


def test_two_windows_hear_of_it_and_one_that_was_cut_is_told_what_it_missed(tmp_path: Path) -> None:
    chromium = Chromium(tmp_path)
    with run_app(tmp_path, redis_url=None) as app:
        chromium.start()
        try:
            with chromium.window(app.url) as stranger:  # without the link that the server has printed
                wait_until(lambda: "Live" in stranger.status, "the stream is live")
                stranger.publish("of a stranger")
                refusal = "document.getElementById('publish-error').innerText"
                wait_until(lambda: "Open the link" in stranger.evaluate(refusal), "it is told what to do")
            page = app.demo_link().replace("/#", "/?topic=windows#")
            with chromium.window(page) as one, chromium.window(page) as two:
                for window in (one, two):
                    wait_until(lambda window=window: "Live" in window.status, "the stream is live")
                one.publish("first")
                for window in (one, two):
                    wait_until(lambda window=window: "first" in window.rows, "the event is shown")

                two.click("cut")
                wait_until(lambda: "Live" not in two.status, "the stream is cut")
                one.publish("second")
                wait_until(lambda: "second" in one.rows, "the event is shown")
                one.publish("third")
                wait_until(lambda: "third" in one.rows, "the event is shown")
                assert "second" not in two.rows

                two.click("resume")
                wait_until(lambda: "third" in two.rows, "the missed events are shown")
                assert two.rows.count("missed while away") == 2
                assert [two.rows.count(name) for name in ("first", "second", "third")] == [1, 1, 1]
        finally:
            chromium.close()


# -- the example of the README

SOON_S = 20  # an example comes back after at most 5 s
STUBS = """
window.told = [];
window.loadPage = async () => {};
window.reloadEverything = () => told.push("reload");
window.refetch = (id) => told.push(id);
window.OriginalEventSource ??= EventSource;
window.sources = [];
window.EventSource = class extends OriginalEventSource {
  constructor(url) { super(url); sources.push(this); }
};
"""


def example() -> str:
    (code,) = re.findall(r"## Listen\n\n```js\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    return f"{STUBS};(async () => {{ {code}; window.position = () => cursor; }})(); undefined"


class BadGateway(http.server.BaseHTTPRequestHandler):
    """A proxy whose server is being restarted."""

    def do_GET(self) -> None:
        self.send_error(502)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def bad_gateway(port: int) -> Iterator[None]:
    with http.server.ThreadingHTTPServer((HOST, port), BadGateway) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_the_readmes_example_survives_a_502_and_misses_nothing(tmp_path: Path) -> None:
    chromium, port = Chromium(tmp_path), free_port()
    with run_redis(tmp_path) as redis, redis.client() as producer, ExitStack() as windows:

        def publish(resource_id: str) -> str:
            data = {"id": resource_id, "reason": "edited"}
            return publish_topic_event_sync(producer, "42", "argument_updated", data)

        chromium.start()
        try:
            with run_app(tmp_path, redis_url=redis.url, port=port) as app:
                before = publish("before")
                window = windows.enter_context(chromium.window(f"{app.url}/docs"))
                there = "location.pathname === '/docs' && document.readyState === 'complete'"
                wait_until(lambda: window.evaluate(there), "the page is there")
                window.evaluate(example())
                wait_until(
                    lambda: window.evaluate("sources.map(({readyState}) => readyState)") == [1], "a stream"
                )
                wait_until(lambda: window.evaluate("position()") == before, "the position is told")
            # It has heard of no event when its stream is cut, and again of none before the 502.
            publish("away")
            with bad_gateway(port):
                wait_until(lambda: window.evaluate("sources[0].readyState") == 2, "ended for good", SOON_S)
                publish("away, too")
            with run_app(tmp_path, redis_url=redis.url, port=port):
                wait_until(lambda: len(window.evaluate("told")) == 2, "what was missed is told", SOON_S)
                last = publish("live")
                wait_until(lambda: len(window.evaluate("told")) == 3, "it is live again", SOON_S)
                assert window.evaluate("told") == ["away", "away, too", "live"]
                assert window.evaluate("position()") == last
        finally:
            chromium.close()

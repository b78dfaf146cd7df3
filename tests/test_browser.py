"""The user's acceptance case in a real browser: two windows on one topic, and one that was cut resumes.

Chromium is driven over its DevTools protocol, with the WebSocket library that Hypercorn brings.
"""

import json
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import Process, free_port, run_app, run_redis, wait_until
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request, TextMessage

CHROMIUM = shutil.which("chromium")
TOKEN = "of the test"
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
        target = self.ask(f"/json/new?{url}", "PUT")
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
    with (
        run_redis(tmp_path) as redis,
        run_app(
            tmp_path,
            redis_url=redis.url,
            settings={
                "STALECAST_DEMO": "true",
                "STALECAST_DEMO_TOKEN": "true",
                "STALECAST_PUBLISH_TOKEN": TOKEN,
            },
        ) as app,
    ):
        chromium.start()
        try:
            page = f"{app.url}/?topic=windows"
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

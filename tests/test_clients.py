"""Every client keeps a cursor: one that heard nothing before it was cut hears what came while it was away.

Browsers with a plain `new EventSource(url)`, and libraries in four languages (`tests/clients/`), each as its
own documentation uses it and with a handler that does what README's does. All of them go through a scene at
once, each with a topic of its own, since most of it is waiting; each test then looks at one client.
"""

import contextlib
import http
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from servers import HOST, PROJECT, AppServer, Process, ServerFailed, free_port, run_app, run_redis, wait_until

from app.publish import publish_topic_event_sync

PROGRAMS: Final = PROJECT / "tests" / "clients"
BUILD_TIMEOUT_S: Final = 300.0  # the first time it fetches packages
# Longer than any of the clients' own read time-outs, the longest of which is OkHttp's 10 s.
SILENCE_S: Final = 12.0
OPEN_TIMEOUT_S: Final = 45.0  # three browsers and two JVMs start at the same time
AWAY_S: Final = 3.0  # each client has tried at least once meanwhile
# Libraries with pauses of their own double them at each failure.
RETURN_TIMEOUT_S: Final = 25.0

BROWSERS: Final = ("Chromium", "Firefox", "WebKitGTK")
LIBRARIES: Final = {
    "eventsource": "javascript",
    "eventsource-client": "javascript",
    "fetch-event-source": "javascript",
    "launchdarkly-eventsource": "javascript",
    "reconnecting-eventsource": "javascript",
    "httpx-sse": "python",
    "launchdarkly-eventsource (Python)": "python",
    "sseclient-py": "python",
    "go-sse": "go",
    "r3labs/sse": "go",
    "okhttp-eventsource": "java",
    "okhttp-sse": "java",
}
CLIENTS: Final = (*BROWSERS, *LIBRARIES)
# What README says of an answer other than 200: these never come again by themselves.
GIVE_UP_AFTER_502: Final = {"Chromium", "Firefox", "WebKitGTK", "eventsource", "go-sse"}


class NotHere(Exception):
    """What a client needs is not on this machine; the text names it."""


def need(*commands: str) -> str:
    """The path of the first of them that is installed, e.g. `firefox-esr` or `firefox`."""
    for command in commands:
        if path := shutil.which(command):
            return path
    raise NotHere(f"{commands[0]} is not installed")


# -- programs, one for each language


def build(folder: Path, argv: Sequence[str], *, of: Sequence[str], into: str) -> Path:
    """Run what builds a program unless the result is newer than its sources; all named within `folder`."""
    result = folder / into
    if not result.exists() or any(
        (folder / source).stat().st_mtime > result.stat().st_mtime for source in of
    ):
        try:
            # Not as part of a workspace that happens to lie above this folder.
            env = os.environ | {"GOWORK": "off"}
            subprocess.run(
                argv, cwd=folder, env=env, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = b"".join(filter(None, (error.stdout, error.stderr)))[-500:].decode(errors="replace")
            raise NotHere(f"{argv[0]} in {folder} does not build it: {error}: {said}") from error
    return result


def javascript() -> list[str]:
    node = need("node")
    folder = PROGRAMS / "javascript"
    build(folder, [need("npm"), "ci"], of=["package-lock.json"], into="node_modules/.package-lock.json")
    return [node, str(folder / "listen.mjs")]


def python() -> list[str]:
    for module in ("httpx_sse", "ld_eventsource", "sseclient"):
        if importlib.util.find_spec(module) is None:
            raise NotHere(f"the Python package of {module} is not installed (make .venv/.dev)")
    return [sys.executable, str(PROGRAMS / "python" / "listen.py")]


def go() -> list[str]:
    folder = PROGRAMS / "go"
    argv = [need("go"), "build", "-o", "listen", "."]
    return [str(build(folder, argv, of=["main.go", "go.sum"], into="listen"))]


def java() -> list[str]:
    folder = PROGRAMS / "java"
    runtime = need("java")
    argv = [need("mvn"), "-q", "-B", "process-classes"]
    source = "src/main/java/Listen.java"
    build(folder, argv, of=["pom.xml", source], into="target/classes/Listen.class")
    return [runtime, "-cp", f"{folder}/target/classes:{folder}/target/dependency/*", "Listen"]


COMMANDS: Final = {"javascript": javascript, "python": python, "go": go, "java": java}


class Program(Process):
    """A library on one stream. It says in lines of JSON what it was given."""

    def __init__(self, folder: Path, name: str, argv: Sequence[str]) -> None:
        super().__init__(topic_of(name), folder, argv, {"HOME": str(folder), "PATH": os.environ["PATH"]})

    def lines(self) -> list[dict[str, str]]:
        whole = self.output().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]


def test_a_program_that_cannot_be_built_is_missing_for_what_its_builder_says(tmp_path: Path) -> None:
    too_old = "import sys; sys.exit('go.mod requires go >= 1.23')"  # what Go's own older versions say
    with pytest.raises(NotHere, match=r"go\.mod requires go >= 1\.23"):
        build(tmp_path, [sys.executable, "-c", too_old], of=[], into="listen")


# -- browsers, each on a page that tells what its EventSource hears


# It is of the server's own origin, but comes before the server does: from a stand-in on the same port.
PAGE: Final = """<!doctype html><meta charset="utf-8"><title>{name}</title><script>
const say = (line) => fetch("{ear}/{name}", {{method: "POST", mode: "no-cors", body: JSON.stringify(line)}});
function listen() {{
    const source = new EventSource("/v1/sse/{name}");
    source.onerror = () => say({{state: String(source.readyState)}});
    source.onmessage = ({{data}}) => {{
        say({{message: data}});
        const {{event, data: what}} = JSON.parse(data);
        if (event === "reload_required") say({{reload: what.reason}});
        else if (event === "argument_updated") say({{heard: what.id}});
    }};
}}
async function waitServer() {{
    const answer = await fetch("/readyz").catch(() => undefined);
    if (answer?.ok) listen();
    else setTimeout(waitServer, 200);
}}
say({{page: "loaded"}});
waitServer();
</script>"""


@contextmanager
def answering(answer: Callable[[str, bytes], tuple[http.HTTPStatus, str]], port: int = 0) -> Iterator[str]:
    """A server whose answers are the test's: status and HTML for a path and a body. The value is its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, page = answer(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page.encode())

        do_POST = do_GET  # noqa: N815 the name is the library's

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# No question to anybody else, no first-run page.
FIREFOX_PREFERENCES: Final = {
    "app.normandy.enabled": False,
    "app.update.auto": False,
    "browser.aboutwelcome.enabled": False,
    "browser.region.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.systemAddon.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.enabled": False,
}
CHROMIUM_ARGUMENTS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
MINI_BROWSERS: Final = "/usr/lib/*/webkit2gtk-4.1/MiniBrowser"  # Debian: libwebkit2gtk-4.1-0


class Browser(Process):
    def __init__(self, folder: Path, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        super().__init__(name, folder, argv, {"HOME": str(folder), "PATH": "/usr/bin:/bin", **env})
        self.said: list[dict[str, str]] = []

    def lines(self) -> list[dict[str, str]]:
        return list(self.said)


class Display(Process):
    """A screen that nobody sees: WebKitGTK has no headless mode of its own."""

    def __init__(self, folder: Path) -> None:
        self.number_file = folder / "display"
        # It picks a free number by itself, and writes it when it is ready.
        argv = ["/bin/sh", "-c", f'exec "$0" -displayfd 3 -nolisten tcp 3>"{self.number_file}"', need("Xvfb")]
        super().__init__("xvfb", folder, argv, {"HOME": str(folder), "PATH": "/usr/bin:/bin"})

    def is_ready(self) -> bool:
        return self.number_file.exists() and self.number_file.read_text().endswith("\n")

    @property
    def name_of_display(self) -> str:
        return f":{self.number_file.read_text().strip()}"


def start_browser(stack: ExitStack, folder: Path, name: str, page: str) -> Browser:
    profile = folder / f"{name}-profile"
    profile.mkdir()
    env: dict[str, str] = {}
    if name == "Chromium":
        argv = [need("chromium"), *CHROMIUM_ARGUMENTS, f"--user-data-dir={profile}", page]
    elif name == "Firefox":
        lines = [
            f"user_pref({json.dumps(key)}, {json.dumps(at)});" for key, at in FIREFOX_PREFERENCES.items()
        ]
        (profile / "user.js").write_text("\n".join(lines))
        argv = [need("firefox-esr", "firefox"), "--headless", "--no-remote", "--profile", str(profile), page]
    else:
        found = sorted(Path("/").glob(MINI_BROWSERS[1:]))
        if not found:
            raise NotHere("WebKitGTK's MiniBrowser is not installed (Debian: libwebkit2gtk-4.1-0)")
        display = Display(folder)
        stack.callback(display.kill)
        display.start()
        env = {"DISPLAY": display.name_of_display, "XDG_RUNTIME_DIR": str(profile), "GTK_A11Y": "none"}
        argv = [str(found[0]), page]
    browser = Browser(folder, name, argv, env)
    stack.callback(browser.kill)
    browser.spawn()
    return browser


# -- the scene


def topic_of(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


@dataclass
class Scene:
    """What became of each client."""

    missing: dict[str, str] = field(default_factory=dict)  # why it is not on this machine
    lines: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    opened_before_the_cut: Counter[str] = field(default_factory=Counter)


def opened(app: AppServer) -> Counter[str]:
    """How often a stream of each topic was opened, by the server's log."""
    found: Counter[str] = Counter()
    for line in app.output().splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("event") == "stream_opened":
                found[entry["topic"]] += 1
    return found


@pytest.fixture(scope="module", params=["drained", "killed", "bad gateway"])
def way(request: pytest.FixtureRequest) -> str:
    """How the stream ends, and what answers while the server is away."""
    return request.param


@pytest.fixture(scope="module")
def scene(way: str, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("clients")
    scene = Scene()
    followers: dict[str, Program | Browser] = {}

    def answer_page(path: str, body: bytes) -> tuple[http.HTTPStatus, str]:
        name = path[1:]
        known = name in BROWSERS
        return http.HTTPStatus(200 if known else 404), PAGE.format(name=name, ear=ear) if known else ""

    def take_word(path: str, body: bytes) -> tuple[http.HTTPStatus, str]:
        browser = followers.get(path[1:])
        if isinstance(browser, Browser):
            browser.said.append(json.loads(body))
        return http.HTTPStatus.NO_CONTENT, ""

    with ExitStack() as stack:
        redis = stack.enter_context(run_redis(folder))
        ear = stack.enter_context(answering(take_word))
        port = free_port()
        with answering(answer_page, port) as origin:
            for name in BROWSERS:
                try:
                    followers[name] = start_browser(stack, folder, name, f"{origin}/{name}")
                except NotHere as reason:
                    scene.missing[name] = str(reason)
            wait_until(lambda: all(one.lines() for one in followers.values()), "pages", OPEN_TIMEOUT_S)
        # The default heartbeat: clients with a read time-out live by it.
        app = stack.enter_context(
            run_app(folder, redis_url=redis.url, port=port, settings={"STALECAST_RETRY_MS": "500"})
        )
        for name, language in LIBRARIES.items():
            try:
                argv = [*COMMANDS[language](), name, f"{app.url}/v1/sse/{topic_of(name)}"]
            except NotHere as reason:
                scene.missing[name] = str(reason)
                continue
            program = Program(folder, name, argv)
            stack.callback(program.kill)
            program.spawn()
            followers[name] = program

        with contextlib.suppress(ServerFailed):  # whose stream is missing fails its own test
            wait_until(lambda: len(opened(app)) == len(followers), "all streams are open", OPEN_TIMEOUT_S)
        time.sleep(SILENCE_S if way == "drained" else 1)
        scene.opened_before_the_cut = opened(app)

        app.signal(signal.SIGTERM if way == "drained" else signal.SIGKILL)
        app.wait_ended()
        with redis.client() as client:
            for name in followers:
                data = {"id": "while-away", "reason": "edited"}
                publish_topic_event_sync(client, topic_of(name), "argument_updated", data)
        with ExitStack() as away:
            if way == "bad gateway":
                away.enter_context(answering(lambda path, body: (http.HTTPStatus.BAD_GATEWAY, ""), port))
            time.sleep(AWAY_S)
        app.start()

        expected = [
            follower
            for name, follower in followers.items()
            if way != "bad gateway" or name not in GIVE_UP_AFTER_502
        ]
        with contextlib.suppress(ServerFailed):
            wait_until(
                lambda: all(any("heard" in line for line in one.lines()) for one in expected),
                "all have heard of it",
                RETURN_TIMEOUT_S,
            )
        time.sleep(0.5)  # what comes twice comes now
        for name, follower in followers.items():
            scene.lines[name] = follower.lines()
            scene.outputs[name] = follower.output()
    return scene


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_heard_nothing_and_was_cut_hears_what_came_while_it_was_away(
    scene: Scene, way: str, name: str
) -> None:
    if reason := scene.missing.get(name):
        assert not os.environ.get("REQUIRE_ALL"), reason
        pytest.skip(reason)
    lines = scene.lines[name]
    told = [line for line in lines if "heard" in line or "reload" in line]
    gives_up = way == "bad gateway" and name in GIVE_UP_AFTER_502
    assert told == ([] if gives_up else [{"heard": "while-away"}]), (lines, scene.outputs[name])
    # Heartbeats and blocks without data make no message: what is handed over is always JSON.
    assert all(line["message"] for line in lines if "message" in line), lines
    # The heartbeat comes sooner than its read time-out.
    assert scene.opened_before_the_cut[topic_of(name)] == 1

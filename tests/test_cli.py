"""publish, tail and doctor: in this process against fakes, and once from end to end as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from servers import HOST, PROJECT, RedisServer, free_port, run_app, run_redis, wait_until
from test_client import Exchange, Script, run_http, streaming
from typer.testing import CliRunner

from app import cli
from app.embedded import DATA_FOLDER, URL_FILE

TOKEN = "secret"
NOWHERE = f"redis://{HOST}:1"


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process, in an empty folder and without the surrounding environment."""
    for name in list(os.environ):
        if name == "REDIS_URL" or name.startswith("STALECAST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "take_over_process", lambda: None)  # it is pytest's

    def run(*arguments: str, **environment: str) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["stalecast", *arguments])
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as caught:
                cli.main()
        status = caught.value.code
        assert isinstance(status, int | None)
        return Result(status or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def entries(store: RedisServer, topic: str) -> list[dict[str, object]]:
    with store.client() as client:
        return [json.loads(fields[b"payload"]) for _, fields in client.xrange(f"topic:events:{topic}")]


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli.cli, ["--help"])

    assert result.exit_code == 0
    for command in ("serve", "publish", "tail", "doctor", "schema"):
        assert command in result.output


# -- publish


def test_publishing_into_redis(run: Run, store: RedisServer) -> None:
    result = run("publish", "numbers", "--id", "42", "--reason", "edited", REDIS_URL=store.url)

    with store.client() as client:
        ((event_id, _),) = client.xrange("topic:events:numbers")
    assert result == Result(0, event_id.decode() + "\n", "")
    # A number on the command line is an id like any other.
    assert entries(store, "numbers") == [
        {"event": "argument_updated", "data": {"id": "42", "reason": "edited"}}
    ]


def test_publishing_a_reload(run: Run, store: RedisServer) -> None:
    arguments = ["publish", "reload", "--event", "reload_required", "--reason", "deploy"]

    assert run(*arguments, REDIS_URL=store.url).status == 0
    assert entries(store, "reload") == [{"event": "reload_required", "data": {"reason": "deploy"}}]
    refused = run(*arguments, "--id", "1", REDIS_URL=store.url)
    assert refused.status == 2
    assert "data.id" in refused.err


def test_publishing_keeps_to_the_settings(
    run: Run, store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_events.py").write_text(
        "from app.contracts import EventType, Invalidation\n"
        "def register(registry):\n"
        "    registry.register(EventType('order_shipped', Invalidation))\n"
    )
    monkeypatch.syspath_prepend(".")
    arguments = ["publish", "own", "--event", "order_shipped", "--id", "1", "--reason", "r"]

    unknown = run(*arguments, REDIS_URL=store.url)
    assert unknown.status == 2
    assert "unknown event type 'order_shipped'" in unknown.err
    settings = {
        "REDIS_URL": store.url,
        "STALECAST_EVENTS_MODULE": "my_events",
        "STALECAST_STREAM_MAXLEN": "1",
    }
    for _ in range(150):
        if run(*arguments, **settings).status != 0:
            pytest.fail("not accepted")
    assert len(entries(store, "own")) < 150
    long = run(*arguments[:-1], "r" * 200, **settings, STALECAST_MAX_EVENT_BYTES="100")
    assert long.status == 2
    assert "the limit is 100" in long.err


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "words"),
    [
        (["t"], {}, 2, "reason"),
        (["t", "--reason", "r"], {"REDIS_URL": NOWHERE}, 2, "data.id"),
        (["a/b", "--id", "1", "--reason", "r"], {"REDIS_URL": NOWHERE}, 2, "topic id 'a/b'"),
        (["a/b", "--id", "1", "--reason", "r"], {}, 2, "topic id 'a/b'"),
        (["t", "--id", "1", "--reason", "r"], {"REDIS_URL": NOWHERE}, 1, "Redis at 127.0.0.1:1"),
        (["t", "--id", "1", "--reason", "r"], {"REDIS_URL": "http://x"}, 2, "REDIS_URL"),
        (["t", "--id", "1", "--reason", "r", "--url", f"http://{HOST}:1"], {}, 1, "refused"),
        (["t", "--id", "1", "--reason", "r", "--url", "x"], {}, 2, "write http://"),
        (["t", "--id", "1", "--reason", "r"], {"STALECAST_STREAM_MAXLEN": "0"}, 2, "stream_maxlen"),
    ],
)  # fmt: skip
def test_what_cannot_be_published(
    run: Run, arguments: list[str], environment: dict[str, str], status: int, words: str
) -> None:
    result = run("publish", *arguments, **environment)

    assert result.status == status
    assert words in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


def test_redis_that_refuses(run: Run, store: RedisServer, tmp_path: Path) -> None:
    with store.client() as client:
        client.set("topic:events:text", "no stream")
    wrong_type = run("publish", "text", "--id", "1", "--reason", "r", REDIS_URL=store.url)
    assert wrong_type.status == 1
    assert "WRONGTYPE" in wrong_type.err

    with run_redis(tmp_path, password="right") as guarded:
        url = guarded.url.replace("right", "wrong")
        denied = run("publish", "t", "--id", "1", "--reason", "r", REDIS_URL=url)
    assert denied.status == 2
    assert "does not let this user publish" in denied.err
    assert "wrong@" not in denied.err


def test_publishing_through_a_server(run: Run) -> None:
    script = Script(*[lambda exchange: exchange.answer(201, body=b'{"id": "9-0"}')] * 2)
    with run_http(script) as server:
        arguments = ["publish", "t", "--id", "1", "--reason", "r", "--url", server.url]
        assert run(*arguments, "--token", "a") == Result(0, "9-0\n", "")
        # An explicit URL is meant, also where Redis could be reached.
        assert run(*arguments, STALECAST_PUBLISH_TOKEN="b", REDIS_URL=NOWHERE) == Result(0, "9-0\n", "")

    assert script.sent("Authorization") == ["Bearer a", "Bearer b"]


@pytest.mark.parametrize(("answered", "status"), [(401, 2), (422, 2), (503, 1)])
def test_a_server_that_refuses(run: Run, answered: int, status: int) -> None:
    with run_http(Script(lambda exchange: exchange.answer(answered))) as server:
        result = run("publish", "t", "--id", "1", "--reason", "r", "--url", server.url)

    assert result.status == status
    assert str(answered) in result.err


def test_publishing_into_the_embedded_store_of_this_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_URL", f"http://{HOST}:1")
    DATA_FOLDER.mkdir()
    with run_redis(tmp_path, unix=True) as embedded:
        (DATA_FOLDER / URL_FILE).write_text(embedded.url + "\n")
        assert run("publish", "t", "--id", "1", "--reason", "r").status == 0
        assert len(entries(embedded, "t")) == 1
    # Left behind by a server that was killed: the next way is tried.
    result = run("publish", "t", "--id", "1", "--reason", "r")
    assert result.status == 1
    assert f"{HOST}:1" in result.err


@pytest.mark.parametrize("token", ["se\ncret", "se\x01cret", "se\u200bcret"])
def test_a_token_that_cannot_be_sent_is_told_and_not_shown(run: Run, token: str) -> None:
    arguments = ["publish", "t", "--id", "1", "--reason", "r", "--url", f"http://{HOST}:1"]
    for result in (
        run(*arguments, "--token", token),
        run(*arguments, STALECAST_PUBLISH_TOKEN=token),
        run("doctor", f"http://{HOST}:1", "--token", token),
    ):
        assert result.status == 2
        assert "character 3 cannot be seen or sent" in result.err
        assert "cret" not in result.err


def test_a_token_from_a_file_is_sent_without_its_line_end(run: Run) -> None:
    script = Script(*[lambda exchange: exchange.answer(201, body=b'{"id": "9-0"}')] * 2)
    with run_http(script) as server:
        arguments = ["publish", "t", "--id", "1", "--reason", "r", "--url", server.url]
        assert run(*arguments, "--token", "a\r\n").status == 0
        assert run(*arguments, STALECAST_PUBLISH_TOKEN="b\n").status == 0
    assert script.sent("Authorization") == ["Bearer a", "Bearer b"]


def test_a_misspelt_variable_is_told_to_who_publishes(run: Run) -> None:
    arguments = ["publish", "t", "--id", "1", "--reason", "r", "--url", f"http://{HOST}:1"]
    result = run(*arguments, STALECAST_PUBLISH_TOKNE="secret")
    assert "STALECAST_PUBLISH_TOKNE; STALECAST_PUBLISH_TOKEN was meant?" in result.err
    assert "secret" not in result.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["tail"], 2, "topic"),
        (["tail", "t", "--url", "http://h:99999"], 2, "URL"),
        (["tail", "t", "--url", "ftp://h"], 2, "http://"),
        (["tail", "t", "--url", "http://u:p@h"], 2, "user name or password"),
        (["tail", "", "--url", "http://h"], 2, "topic id"),
        (["doctor"], 2, "url"),
        (["doctor", "http://[::1"], 2, "URL"),
        (["doctor", "http://h", "--idle-s", "-1"], 2, "idle-s"),
        (["doctor", "http://h", "--idle-s", "soon"], 2, "idle-s"),
        (["doctor", "http://h", "--topic", "a/b"], 2, "topic id"),
        (["publish"], 2, "topic"),
        (["nonsense"], 2, "nonsense"),
        (["serve", "--nonsense"], 2, "nonsense"),
        (["schema", "too", "much"], 2, "too"),
        (["worker"], 2, "stalecast serve"),
    ],
)
def test_wrong_input_gets_plain_words(run: Run, arguments: list[str], status: int, words: str) -> None:
    result = run(*arguments)

    assert result.status == status
    told = result.err + result.out  # what serves logs it, in this process to where pytest looks
    assert words.lower() in told.lower()
    assert "Traceback" not in told


# -- tail


EVENT = b'id: 1700000000000-0\ndata: {"event":"argument_updated","data":{"id":"42","reason":"edited"}}\n\n'
RELOAD = b'id: 1700000000001-0\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n'
HOSTILE = (
    b'id: x\ndata: {"event":"e","data":{"reason":"\\u001b[31m\\nfake line"}}\n\nid: y\ndata: no JSON\n\n'
)


def gone(exchange: Exchange) -> None:
    exchange.answer(404)


def test_tail_shows_events_and_the_line_s_state(run: Run) -> None:
    script = Script(streaming(b"retry: 60\n\n", EVENT, RELOAD), gone)
    with run_http(script) as server:
        result = run("tail", "t", "--url", server.url, "--last-event-id", "5-0")

    event, reload = result.out.splitlines()
    assert event[2] == ":"
    assert "  1700000000000-0" in event
    assert "  argument_updated  id=42  reason=edited  " in event
    assert event.endswith(" ms")
    assert reload.endswith("  reload_required  reason=trimmed")
    assert result.err.splitlines()[:2] == [
        "connected, after 5-0",
        "disconnected: the server ended the stream; again in 0.1 s",
    ]
    assert "404 Not Found" in result.err
    assert result.status == 2
    assert script.sent("Last-Event-ID") == ["5-0", "1700000000001-0"]


def test_tail_as_json(run: Run) -> None:
    before_ms = time.time() * 1000
    with run_http(Script(streaming(b"retry: 60\n\n", EVENT, RELOAD), gone)) as server:
        event, reload = map(json.loads, run("tail", "t", "--url", server.url, "--json").out.splitlines())

    assert event.pop("latency_ms") == pytest.approx(before_ms - 1_700_000_000_000, abs=5000)
    assert event.pop("time").startswith("20")
    assert event == {
        "stream_id": "1700000000000-0", "event": "argument_updated", "id": "42", "reason": "edited",
    }  # fmt: skip
    assert (reload["id"], reload["reason"], reload["latency_ms"]) == (None, "trimmed", None)


def test_tail_shows_nothing_that_could_steer_a_terminal(run: Run) -> None:
    with run_http(Script(streaming(b"retry: 60\n\n", HOSTILE), gone)) as server:
        lines = run("tail", "t", "--url", server.url).out.splitlines()

    assert [line[14:].strip() for line in lines] == [
        "x                  e  reason=[31m fake line",
        "y                  no JSON",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/b"], "topic id"),
        (["t", "--url", "x"], "write http://"),
        (["t", "--last-event-id", "a\n"], "header"),
    ],
)
def test_tail_refuses_what_cannot_be_asked(run: Run, arguments: list[str], words: str) -> None:
    result = run("tail", *arguments)

    assert result.status == 2
    assert words in result.err


# -- doctor


def test_doctor_fails_at_nobody(run: Run) -> None:
    result = run("doctor", f"http://{HOST}:{free_port()}")

    assert result.status == 1
    (line,) = result.out.splitlines()
    assert line.startswith("FAIL  reachable")
    assert "left out" in result.err
    assert run("doctor", "nowhere").status == 2


# -- from end to end


@contextmanager
def run_tail(folder: Path, *arguments: str, stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "tail", *arguments],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stdout or out, stderr=err,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_topic_is_followed_over_a_crash_and_a_deploy(run: Run, store: RedisServer, tmp_path: Path) -> None:
    def publish(name: str) -> None:
        assert run("publish", "way", "--id", name, "--reason", "r", REDIS_URL=store.url).status == 0

    def seen() -> list[str]:
        return [json.loads(line)["id"] for line in (tmp_path / "out").read_text().splitlines()]

    def connects() -> int:
        return (tmp_path / "err").read_text().splitlines().count("connected") + (
            tmp_path / "err"
        ).read_text().count("connected, after")

    settings = {"STALECAST_RETRY_MS": "100", "STALECAST_PUBLISH_TOKEN": TOKEN}
    with (
        run_app(tmp_path, redis_url=store.url, settings=settings) as app,
        run_tail(tmp_path, "way", "--json", "--url", app.url) as tail,
    ):
        wait_until(lambda: connects() == 1, "connected")
        publish("one")
        wait_until(lambda: seen() == ["one"], "the first event")
        app.kill()
        publish("two")
        app.start()
        wait_until(lambda: seen() == ["one", "two"], "what was missed over a crash")
        app.terminate()
        app.wait_ended()
        publish("three")
        app.start()
        wait_until(lambda: seen() == ["one", "two", "three"], "what was missed over a deploy")
        through = run("publish", "way", "--id", "four", "--reason", "r", "--url", app.url, "--token", TOKEN)
        assert through.status == 0
        wait_until(lambda: seen()[3:] == ["four"], "what came through the server")

        tail.send_signal(signal.SIGINT)
        assert tail.wait(5) == cli.INTERRUPTED_STATUS
        assert (tmp_path / "err").read_text().splitlines()[-1].startswith("connected, after")


def test_a_broken_pipe_ends_tail_quietly_and_doctor_is_content(
    run: Run, store: RedisServer, tmp_path: Path
) -> None:
    settings = {"STALECAST_HEARTBEAT_INTERVAL_S": "0.3", "STALECAST_PUBLISH_TOKEN": TOKEN}
    with run_app(tmp_path, redis_url=store.url, settings=settings) as app:
        with run_tail(tmp_path, "pipe", "--url", app.url, stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            wait_until(lambda: "connected" in (tmp_path / "err").read_text(), "connected")
            tail.stdout.close()
            run("publish", "pipe", "--id", "1", "--reason", "r", REDIS_URL=store.url)
            tail.wait(5)
            assert (tmp_path / "err").read_text() == "connected\n"

        result = run(
            "doctor", app.url, "--origin", "https://app.example/", "--token", TOKEN, "--idle-s", "1"
        )  # fmt: skip

    verdicts = {line[6:19].strip(): line[:4] for line in result.out.splitlines()}
    assert verdicts.pop("connections") == "WARN"
    assert len(verdicts) == 11
    assert set(verdicts.values()) == {"PASS"}, result.out
    assert result.status == 0
    assert "watching" in result.err
    with redis.Redis.from_url(store.url) as client:
        assert client.xlen("topic:events:stalecast-doctor") == 1


@pytest.mark.parametrize(
    ("arguments", "origins"),
    [
        (("doctor", f"http://{HOST}:1", "--origin", "app.example"), "*"),
        (("serve", "--port", "0"), "app.example"),
    ],
    ids=["doctor", "serve"],
)
def test_an_origin_that_no_browser_sends_is_told(run: Run, arguments: tuple[str, ...], origins: str) -> None:
    result = run(*arguments, REDIS_URL=NOWHERE, STALECAST_CORS_ALLOW_ORIGINS=origins)

    assert result.status == 2
    assert "origin 'app.example' has no scheme: write https://app.example" in result.err

"""The load against a small server that does what the test says: it sees every loss and invents none."""

import itertools
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("hdrh", reason="the bench's own requirements are not installed")
pytest.importorskip("numpy", reason="the bench's own requirements are not installed")

import numpy as np

from bench import latency, load, wire
from bench.load import Load, LoadFailed, Receipts
from bench.peers.side import Dialect
from bench.probe import Decoder, EventReader, Probe

SOON_S = 5.0  # for what takes milliseconds
NOT_FOR_LONG_S = 0.05  # for what never comes
PROJECT = Path(__file__).resolve().parents[1]
GREETING = b'retry: 1000\nevent: position\nid: 0-0\ndata: {"event":"position","data":{}}\n\n'
RELOAD = b'id: 9-0\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n'
HEARTBEAT = b":\n"
REASON = b"r"

# (client, number, block) to what it is sent instead; None: its connection is cut.
Fault = Callable[[int, int, bytes], bytes | None]


def block(seq: int, published_ns: int, reason: bytes = REASON) -> bytes:
    return b"id: %d-0\ndata: %b\n\n" % (seq + 1, wire.payload(seq, published_ns, reason))


@dataclass(frozen=True)
class Script:
    """How the subscribers of a topic are served. `backlog` follows the greeting of those with a
    Last-Event-ID, in the same bytes. With `dribble` every byte is a segment."""

    fault: Fault = lambda client, seq, sent: sent
    status: bytes = b"200 OK"
    greeting: bytes = GREETING
    backlog: bytes = b""
    chunked: bool = True
    dribble: bool = False
    line_end: bytes = b"\n"

    def answer(self, head: bytes) -> bytes:
        coding = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        answer = b"HTTP/1.1 %b\r\nContent-Type: text/event-stream\r\n%b\r\n" % (self.status, coding)
        return (
            answer + self.body(self.greeting) + self.body(self.backlog if b"Last-Event-ID" in head else b"")
        )

    def body(self, body: bytes) -> bytes:
        body = body.replace(b"\n", self.line_end)
        return wire.chunk(body) if self.chunked and body else body

    def send(self, sock: socket.socket, data: bytes) -> None:
        size = 1 if self.dribble else len(data)
        for at in range(0, len(data), size or 1):
            sock.sendall(data[at : at + size])


class FakeServer:
    """Greets whoever asks; what is sent afterwards, and to whom, is up to the test. The clients of a topic
    count from 0."""

    def __init__(self, script: Script = Script()) -> None:
        self.script = script
        self.scripts: dict[str, Script] = {}  # of topics that have their own
        self.requests: list[bytes] = []
        self.clients: defaultdict[str, list[socket.socket]] = defaultdict(list)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for clients in self.clients.values():
            for sock in clients:
                sock.close()

    def publish(self, topic: str, seq: int, published_ns: int) -> None:
        script = self.scripts.get(topic, self.script)
        for client, sock in enumerate(self.clients[topic]):
            sent = script.fault(client, seq, block(seq, published_ns))
            if sent is None:
                sock.close()
            elif sock.fileno() >= 0:
                script.send(sock, script.body(sent))

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = b""
            while b"\r\n\r\n" not in head and (data := sock.recv(4096)):
                head += data
            self.requests.append(head)
            topic = head.split()[1].decode().rpartition("/")[2]
            self.clients[topic].append(sock)
            script = self.scripts.get(topic, self.script)
            script.send(sock, script.answer(head))


class FakePublisher:
    def __init__(self, server: FakeServer, slow_s: float = 0) -> None:
        self.published: defaultdict[str, int] = defaultdict(int)
        self.calls: list[list[tuple[str, int]]] = []
        self._server, self._slow_s = server, slow_s

    def prepare(self, topics: object) -> None:
        pass

    def publish(self, events: list[tuple[str, int]]) -> None:
        time.sleep(self._slow_s)
        self.calls.append(list(events))
        for topic, published_ns in events:
            seq = self.published[topic]
            self.published[topic] = seq + 1
            self._server.publish(topic, seq, published_ns)


COUNTS = ("expected", "received", "lost", "repeated", "reloads", "cut")


def counts(receipts: Receipts, before: Receipts | None = None) -> dict[str, int]:
    found = {name: getattr(receipts, name) - (getattr(before, name) if before else 0) for name in COUNTS}
    return {name: count for name, count in found.items() if count}


class Stand:
    """A server and a load that tests share, because a process takes a tenth of a second to start. What one
    test does never shows in another: each has topics of its own."""

    def __init__(self, server: FakeServer, subscribers: Load) -> None:
        self.server, self.load = server, subscribers
        self._topics = map(str, itertools.count())

    def new_topic(self, script: Script) -> str:
        topic = next(self._topics)
        self.server.scripts[topic] = script
        return topic

    def run(self, script: Script, events: int = 5, wait_s: float = SOON_S) -> Receipts:
        """Three subscribers of one topic and one of another; as many events for each."""
        a, b = self.new_topic(script), self.new_topic(script)
        outside = self.load.receipts()
        self.load.connect([a, a, b, a])
        plan = [(at / 1000, topic) for at in range(events) for topic in (a, b)]
        receipts = self.load.run(FakePublisher(self.server), plan, wait_s)
        assert receipts.histogram.get_total_count() == receipts.received
        assert counts(self.load.receipts(), outside) == {}
        return receipts


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LEAD_S", 0.005)
    monkeypatch.setattr(load, "SETTLE_S", 0.01)


@pytest.fixture(scope="module", params=[1, 2])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with FakeServer() as server, Load(server.port, Dialect(), request.param) as subscribers:
        yield Stand(server, subscribers)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = engine_pids()
    yield
    assert engine_pids() == before


def engine_pids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- counting


def test_everything_in_order(stand: Stand) -> None:
    receipts = stand.run(Script())
    assert counts(receipts) == {"expected": 20, "received": 20}
    assert len(receipts.spans_ns) == 10
    assert min(receipts.spans_ns) > 0
    assert 0 < receipts.busy <= 1
    assert receipts.lag_ns > 0


def change_one(to: Callable[[bytes], bytes | None], client: int = 1, seq: int = 2) -> Fault:
    return lambda at, number, sent: to(sent) if (at, number) == (client, seq) else sent


def lose(sent: bytes) -> bytes:
    return b""


def cut(sent: bytes) -> None:
    return None


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (change_one(lose), {"expected": 20, "received": 19, "lost": 1}),
        (change_one(lambda sent: sent + sent), {"expected": 20, "received": 20, "repeated": 1}),
        (change_one(cut), {"expected": 20, "received": 17, "lost": 3, "cut": 1}),
        (change_one(lambda sent: RELOAD + sent), {"expected": 20, "received": 20, "reloads": 1}),
        (change_one(lambda sent: RELOAD), {"expected": 20, "received": 19, "lost": 1, "reloads": 1}),
        (change_one(lambda sent: HEARTBEAT + sent), {"expected": 20, "received": 20}),
    ],
    ids=["loses", "repeats", "cuts", "reloads", "reloads instead", "heartbeat"],
)
def test_one_fault_at_one_client(stand: Stand, fault: Fault, found: dict[str, int]) -> None:
    assert counts(stand.run(Script(fault))) == found


def test_the_last_event_lost_is_known_at_the_deadline(stand: Stand) -> None:
    receipts = stand.run(Script(change_one(lose, seq=4)), wait_s=NOT_FOR_LONG_S)
    assert counts(receipts) == {"expected": 20, "received": 19, "lost": 1}


def test_a_late_event_is_lost_and_repeated(stand: Stand) -> None:
    held: list[bytes] = []

    def hold_back_one(client: int, seq: int, sent: bytes) -> bytes:
        if (client, seq) == (1, 1):
            held.append(sent)
            return b""
        return sent + held.pop() if (client, seq) == (1, 3) else sent

    found = counts(stand.run(Script(hold_back_one)))
    assert found == {"expected": 20, "received": 19, "lost": 1, "repeated": 1}


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("dribble", [True, False])
def test_codings(stand: Stand, chunked: bool, dribble: bool, line_end: bytes) -> None:
    twice = change_one(lambda sent: sent + sent)
    receipts = stand.run(Script(twice, chunked=chunked, dribble=dribble, line_end=line_end), events=3)
    assert counts(receipts) == {"expected": 12, "received": 12, "repeated": 1}


def test_runs_go_on_from_each_other(stand: Stand) -> None:
    topic, publisher = stand.new_topic(Script(change_one(cut))), FakePublisher(stand.server)
    stand.load.connect([topic, topic])
    total = stand.load.run(publisher, [(0, topic)] * 3, SOON_S)
    assert counts(total) == {"expected": 6, "received": 5, "lost": 1, "cut": 1}
    second = stand.load.run(publisher, [(0, topic)] * 4, SOON_S)
    assert counts(second) == {"expected": 8, "received": 4, "lost": 4}  # the cut one has lost them all
    total.add(second)
    assert counts(total) == {"expected": 14, "received": 9, "lost": 5, "cut": 1}
    assert total.histogram.get_total_count() == 9
    assert len(total.spans_ns) == 7


def test_what_comes_outside_runs(stand: Stand) -> None:
    topic, outside = stand.new_topic(Script()), stand.load.receipts()
    stand.load.connect([topic])
    for seq in (0, 0, 2):
        stand.server.publish(topic, seq, 0)
    found = {"expected": 3, "received": 2, "lost": 1, "repeated": 1}
    wait_until(lambda: counts(stand.load.receipts(), outside) == found)


def test_an_empty_plan(stand: Stand) -> None:
    assert counts(stand.load.run(FakePublisher(stand.server), [], SOON_S)) == {}


def test_heartbeats(stand: Stand) -> None:
    topic = stand.new_topic(Script(lambda client, seq, sent: HEARTBEAT + sent if seq == 0 else HEARTBEAT))
    before, outside = stand.load.heartbeats(), stand.load.receipts()
    stand.load.connect([topic] * 3)
    for seq in (0, 1):
        stand.server.publish(topic, seq, 0)
    wait_until(lambda: sum(stand.load.heartbeats()) == sum(before) + 6)
    assert len(stand.load.heartbeats()) == len(before) + 3
    # One that came together with an event hides neither.
    assert counts(stand.load.receipts(), outside) == {"expected": 3, "received": 3}


# -- the clock


def test_latency_counts_from_the_plan(stand: Stand) -> None:
    slow_s = 0.05
    topic, publisher = stand.new_topic(Script()), FakePublisher(stand.server, slow_s)
    stand.load.connect([topic])
    ticks: list[None] = []
    plan = [(0, topic), (0.01, topic), (0.02, topic)]
    receipts = stand.load.run(publisher, plan, SOON_S, lambda: ticks.append(None))
    # The second call has what became due while the first one slept, with the times of the plan.
    assert [len(call) for call in publisher.calls] == [1, 2]
    due_ns = [due for call in publisher.calls for _, due in call]
    assert [due - due_ns[0] for due in due_ns] == [0, 10_000_000, 20_000_000]
    assert receipts.histogram.get_min_value() >= slow_s * 1e6 * 0.99
    assert receipts.histogram.get_max_value() >= (slow_s + 0.03) * 1e6
    assert receipts.publish_late_ns >= 30_000_000
    assert ticks


def test_events_of_one_moment_are_told_apart(stand: Stand) -> None:
    a, b, publisher = stand.new_topic(Script()), stand.new_topic(Script()), FakePublisher(stand.server)
    stand.load.connect([a, b])
    receipts = stand.load.run(publisher, [(0, a), (0, b)], SOON_S)
    (call,) = publisher.calls
    assert call[1][1] - call[0][1] == 1
    assert len(receipts.spans_ns) == 2


@pytest.mark.parametrize(
    ("handling", "due", "last", "share"),
    [
        (5, [0, 100], [10, 110], 0.25),
        (5, [0, 0, 0], [10, 10, 10], 0.5),  # a burst is under way once
        (5, [0, 5], [20, 10], 0.25),  # one within the other
        (5, [0, 100], [10, 0], 0.5),  # the second was never received
        (50, [0], [10], 1.0),
        (5, [], [], 0.0),
    ],
)
def test_busy(handling: int, due: list[int], last: list[int], share: float) -> None:
    assert load.busy_share(handling, np.array(due, np.int64), np.array(last, np.int64)) == share


# -- connecting


def test_the_request() -> None:
    with (
        FakeServer(Script(backlog=block(0, 0))) as server,
        Load(server.port, Dialect("/sub/")) as subscribers,
    ):
        subscribers.connect(["a"])
        subscribers.connect(["b"], cursor="7-1", backlog_events=1)
    fields = b"Host: 127.0.0.1\r\nAccept: text/event-stream\r\n"
    assert server.requests == [
        b"GET /sub/a HTTP/1.1\r\n" + fields + b"\r\n",
        b"GET /sub/b HTTP/1.1\r\n" + fields + b"Last-Event-ID: 7-1\r\n\r\n",
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_refusal(processes: int) -> None:
    before = engine_pids()
    with (
        FakeServer(Script(status=b"503 Service Unavailable")) as server,
        Load(server.port, Dialect(), processes) as subscribers,
    ):
        pids = engine_pids() - before
        with pytest.raises(LoadFailed, match=r"turned away: .*503 Service"):
            subscribers.connect(["a"] * 4)
    assert len(pids) == processes
    assert not any(map(is_alive, pids))


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Load(port, Dialect()) as subscribers, pytest.raises(LoadFailed, match="could not connect"):
        subscribers.connect(["a"])


def test_an_answer_that_is_no_stream() -> None:
    with (
        FakeServer(Script(greeting=b"<p>" * 10_000)) as server,
        Load(server.port, Dialect()) as subscribers,
        pytest.raises(LoadFailed, match="turned away"),
    ):
        subscribers.connect(["a"])


@pytest.mark.parametrize("processes", [1, 2])
def test_not_greeted_in_time(processes: int) -> None:
    with (
        FakeServer(Script(greeting=b"retry: 1000\n\n")) as server,
        Load(server.port, Dialect(), processes) as subscribers,
        pytest.raises(LoadFailed, match=r"^3 of 3 subscribers not greeted after 0\.05 s$"),
    ):
        subscribers.connect(["a"] * 3, timeout_s=NOT_FOR_LONG_S, in_flight=1)


@pytest.mark.parametrize(
    ("mark", "greeting"),
    [
        (b"\n:", b":\n\n"),
        (b"\nevent: hi", b"event: hi\n\n"),
        (b"\nid:", b"retry: 1000\n\nid: 0-0\n\n"),  # as some peers have it
    ],
)
def test_other_greetings(mark: bytes, greeting: bytes) -> None:
    with (
        FakeServer(Script(greeting=greeting)) as server,
        Load(server.port, Dialect("/", mark)) as subscribers,
    ):
        subscribers.connect(["a"])
        receipts = subscribers.run(FakePublisher(server), [(0, "a")], SOON_S)
        assert counts(receipts) == {"expected": 1, "received": 1}
        assert subscribers.heartbeats() == [0]


# -- coming back

FIRST_SEQ = 3
BACKLOG = b"".join(block(seq, 0) for seq in range(FIRST_SEQ, 8))


def resume(stand: Stand, script: Script) -> dict[str, int]:
    """Three subscribers, five events for each, and then a run that goes on from there."""
    topic, publisher = stand.new_topic(script), FakePublisher(stand.server)
    publisher.published[topic] = 8
    before = stand.load.receipts()
    connected = stand.load.connect([topic] * 3, cursor="3-0", first_seq=FIRST_SEQ, backlog_events=5)
    assert 0 < connected.greeted_s <= connected.caught_up_s
    outside = counts(stand.load.receipts(), before)
    found = counts(stand.load.run(publisher, [(0, topic)], SOON_S))
    assert found == {"expected": 3, "received": 3}
    return outside


@pytest.mark.parametrize("dribble", [True, False])
def test_a_backlog(stand: Stand, dribble: bool) -> None:
    found = resume(stand, Script(backlog=BACKLOG, dribble=dribble))
    assert found == {"expected": 15, "received": 15}


def test_a_backlog_that_is_more_than_one_read(stand: Stand) -> None:
    backlog = b"".join(block(seq, 0, b"r" * 20_000) for seq in range(FIRST_SEQ, 8))
    assert resume(stand, Script(backlog=backlog)) == {"expected": 15, "received": 15}


def test_a_backlog_that_begins_where_the_greeting_should_be(stand: Stand) -> None:
    assert resume(stand, Script(greeting=BACKLOG)) == {"expected": 15, "received": 15}


def test_a_gap_and_a_repetition_in_the_backlog(stand: Stand) -> None:
    backlog = block(3, 0) + block(5, 0) + block(6, 0) + block(5, 0) + block(7, 0)
    found = resume(stand, Script(backlog=backlog))
    assert found == {"expected": 15, "received": 12, "lost": 3, "repeated": 3}


def test_not_caught_up_in_time() -> None:
    with (
        FakeServer(Script(backlog=block(3, 0) + RELOAD)) as server,
        Load(server.port, Dialect()) as subscribers,
        pytest.raises(LoadFailed, match=r"^0 of 3 subscribers not .*, 3 without their whole backlog$"),
    ):
        subscribers.connect(["a"] * 3, cursor="3-0", first_seq=3, backlog_events=5, timeout_s=NOT_FOR_LONG_S)


# -- processes


def test_processes_end_with_their_parent() -> None:
    program = (
        "import multiprocessing, os, signal\n"
        "from types import SimpleNamespace\n"
        "from bench.load import Load\n"
        "dialect = SimpleNamespace(path_prefix='/', greeting_mark=b':')\n"
        "with Load(1, dialect, 1):\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, check=False)
    assert parent.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 1
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_process_that_ends_on_its_own() -> None:
    before = engine_pids()
    with FakeServer() as server, Load(server.port, Dialect()) as subscribers:
        subscribers.connect(["a"])
        (pid,) = engine_pids() - before
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LoadFailed, match="ended on its own with exit code -9"):
            subscribers.run(FakePublisher(server), [(0, "a")], SOON_S)


# -- histograms


def histogram_of(samples_us: list[int]) -> "latency.HdrHistogram":
    histogram = latency.new_histogram()
    latency.record_ns(histogram, np.array(samples_us, np.int64) * 1000)
    return histogram


@pytest.mark.parametrize("samples_us", [[1], [1, 1, 2, 999_999], [latency.HIGHEST_US, 2047, 2048, 2049]])
def test_a_histogram_round_trip(samples_us: list[int]) -> None:
    histogram = histogram_of(samples_us)
    again = latency.decode(latency.encode(histogram))
    assert again.get_total_count() == len(samples_us)
    assert latency.percentiles(again) == latency.percentiles(histogram)
    assert latency.cdf(again) == latency.cdf(histogram)


def test_merged_percentiles_are_those_of_all_samples() -> None:
    chance = random.Random(1)
    parts = [[round(chance.lognormvariate(8, 1.5)) + 1 for _ in range(size)] for size in (1, 500, 3000)]
    merged = latency.merge(latency.encode(histogram_of(part)) for part in parts)
    samples = sorted(sample for part in parts for sample in part)
    assert merged.get_total_count() == len(samples)
    for name, share in {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}.items():
        exact_us = samples[max(0, int(share * len(samples) + 0.5) - 1)]
        assert latency.percentiles(merged)[name] * 1000 == pytest.approx(exact_us, rel=0.001)


def test_a_cdf_rises_to_one() -> None:
    assert latency.cdf(histogram_of([1000, 2000, 2000, 4000])) == (
        pytest.approx([1, 2, 4], rel=0.001),
        [0.25, 0.75, 1],
    )
    assert latency.cdf(latency.new_histogram()) == ([], [])


def test_every_sample_counts_or_none() -> None:
    histogram = latency.new_histogram()
    latency.record_ns(histogram, np.array([0, 1, 1000, 1001], np.int64))
    assert [histogram.get_count_at_value(us) for us in (1, 2)] == [3, 1]  # rounded up
    for nonsense_ns in (-1000, latency.HIGHEST_US * 1000 + 1):
        with pytest.raises(ValueError, match="no clock"):
            latency.record_ns(histogram, np.array([5000, nonsense_ns], np.int64))
    assert histogram.get_total_count() == 4
    with pytest.raises(ValueError, match="no samples"):
        latency.percentiles(latency.new_histogram())


# -- the probe

STREAM = (
    b"retry: 1\n\n: hello\n\nid: 0-0\n\nid:1-0\ndata: %b\n\nid: 1-1\ndata: no token\n\nevent: x\ndata:%b\n\n"
    % (wire.payload(0, 5, REASON), wire.payload(1, 6, REASON))
)
SEEN = [("1-0", 0), ("1-1", 1)]


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(wire.chunk(part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("chunk_bytes", [None, 1, 7, 1000])
@pytest.mark.parametrize("read_bytes", [1, 2, 50, 5000])
def test_decoding_in_pieces(line_end: bytes, chunk_bytes: int | None, read_bytes: int) -> None:
    body = STREAM.replace(b"\n", line_end)
    coding = b"" if chunk_bytes is None else b"Transfer-Encoding: Chunked\r\n"
    response = b"HTTP/1.1 200 OK\r\nServer: x\r\n%b\r\n" % coding
    response += body if chunk_bytes is None else chunks(body, chunk_bytes)
    decoder, reader = Decoder(), EventReader()
    lines: list[bytes] = []
    for at in range(0, len(response), read_bytes):
        lines += decoder.feed(response[at : at + read_bytes])
    assert decoder.accepted
    assert lines == STREAM.split(b"\n")[:-1]
    assert [seen for line in lines if (seen := reader.feed(line))] == SEEN


@pytest.mark.parametrize("chunked", [True, False])
def test_a_probe_learns_ids(chunked: bool) -> None:
    with FakeServer(Script(chunked=chunked)) as server:
        probe = Probe(server.port, Dialect(), "a")
        try:
            FakePublisher(server).publish([("a", 1), ("b", 2), ("a", 3)])
            assert probe.wait_events(1, SOON_S) == [("1-0", 0)]
            assert probe.wait_events(2, SOON_S) == [("1-0", 0), ("2-0", 1)]
            with pytest.raises(LoadFailed, match="has 2 of 3 events in time"):
                probe.wait_events(3, NOT_FOR_LONG_S)
        finally:
            probe.close()


def test_a_probe_is_refused() -> None:
    with (
        FakeServer(Script(status=b"503 Service Unavailable")) as server,
        pytest.raises(LoadFailed, match="503"),
    ):
        Probe(server.port, Dialect(), "a")


def test_a_probe_sees_the_end() -> None:
    with FakeServer(Script(change_one(cut, client=0, seq=0))) as server:
        probe = Probe(server.port, Dialect(), "a")
        try:
            server.publish("a", 0, 1)
            with pytest.raises(LoadFailed, match="closed the connection"):
                probe.wait_events(1, SOON_S)
        finally:
            probe.close()

"""The fuzzer's short form, and that it sees what it is for."""

from functools import partial
from pathlib import Path

import pytest
import trio
from servers import make_certificate, run_app, run_redis

from .grammar import http1, http2
from .load import SERVER_SETTINGS, run

SEED = 1


def test_a_seed_says_it_all() -> None:
    for make in (http1, http2):
        assert make("1 a 2") == make("1 a 2")
        assert make("1 a 2") != make("1 a 3")
        assert sum(len(make(f"1 a {number}").pieces) for number in range(50)) > 50


def test_nothing_that_a_connection_does_harms_another(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("openssl is not installed")
    tls = {
        "STALECAST_TLS_CERTFILE": str(certificate.certfile),
        "STALECAST_TLS_KEYFILE": str(certificate.keyfile),
    }
    with (
        run_redis(tmp_path) as redis,
        run_app(tmp_path, redis_url=redis.url, settings=SERVER_SETTINGS) as clear,
        run_app(tmp_path, redis_url=redis.url, settings=SERVER_SETTINGS | tls) as secure,
    ):
        report = trio.run(
            partial(
                run, clear, secure, redis.url,
                seed=SEED, first=0, http1_connections=2000, http2_connections=800,
            )
        )  # fmt: skip
    assert report.failures == []
    assert report.connections == 2800

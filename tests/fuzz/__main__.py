"""`python -m tests.fuzz`: as many connections as one likes. Exit status 1 when one of them did harm."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import make_certificate, run_app, run_redis

from .load import SERVER_SETTINGS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--http1", type=int, default=0, help="connections of HTTP/1.1")
    parser.add_argument("--http2", type=int, default=0, help="connections of HTTP/2 over TLS")
    parser.add_argument("--seed", type=int, help="default: from the clock")
    parser.add_argument("--first", type=int, default=0, help="the first connection's number, to repeat some")
    options = parser.parse_args()
    seed = time.time_ns() % 10**9 if options.seed is None else options.seed
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = make_certificate(folder)
        if certificate is None:
            print("openssl is not installed", file=sys.stderr)
            return 2
        tls = {
            "STALECAST_TLS_CERTFILE": str(certificate.certfile),
            "STALECAST_TLS_KEYFILE": str(certificate.keyfile),
        }
        with (
            run_redis(folder) as redis,
            run_app(folder, redis_url=redis.url, settings=SERVER_SETTINGS) as clear,
            run_app(folder, redis_url=redis.url, settings=SERVER_SETTINGS | tls) as secure,
        ):

            async def go() -> int:
                report = await run(
                    clear,
                    secure,
                    redis.url,
                    seed=seed,
                    first=options.first,
                    http1_connections=options.http1,
                    http2_connections=options.http2,
                    say=lambda text: print(text, flush=True),
                )
                sizes = {name: [size >> 20 for size in sizes] for name, sizes in report.rss_bytes.items()}
                print(f"seed {seed}: {report.connections} connections, {len(report.failures)} failures")
                print(f"MiB early and at the end: {sizes}; {time.monotonic() - started_s:.0f} s")
                for failure in report.failures[-20:]:
                    print(failure)
                return 1 if report.failed else 0

            return trio.run(go)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.delivery`: the checker on its own, for as many rounds as one likes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from .chaos import Round, run_rounds
from .processes import ProcessFailed, RedisMissing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.delivery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how many, with seeds counting up (default 1)")
    parser.add_argument("--seed", type=int, help="the first round's seed (default: from the clock)")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2],
        help="worker processes of the server, one number for each lane of rounds (default: 1 2)",
    )
    parser.add_argument("--trace", action="store_true", help="print the whole history of a failing client")
    options = parser.parse_args()
    first = time.time_ns() % 10**9 if options.seed is None else options.seed

    def show(one: Round) -> None:
        if one.violations:
            print(f"seed {one.seed} ({one.workers} workers):", *one.violations, sep="\n  ", flush=True)
            if options.trace:
                print(one.trace, flush=True)

    async def run() -> int:
        started_s = time.monotonic()
        report = await run_rounds(
            range(first, first + options.rounds), workers=options.workers, on_round=show
        )
        print(report)
        print(f"{time.monotonic() - started_s:.0f} s")
        return 1 if report.failed else 0

    try:
        return trio.run(run)
    except* (ProcessFailed, RedisMissing) as group:
        print(*_leaves(group), sep="\n", file=sys.stderr)
    return 2


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())

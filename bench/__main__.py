"""python -m bench NAME [--quick] [--rounds N] [--json FILE]"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from bench.load import LoadFailed
from bench.processes import ServerFailed, pin_load, redis_server
from bench.report import environment, print_environment, print_outcome
from bench.scenarios import SCENARIOS
from bench.stage import Stage

DEFAULT_ROUNDS = 2  # A B A B
EXIT_VIOLATED = 1
EXIT_NOT_MEASURED = 2


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures Stalecast beside the bare loop on this machine."
    )
    parser.add_argument("scenario", choices=list(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="small counts, a few seconds; no figures")
    parser.add_argument("--rounds", type=int, help=f"visits to each side of a comparison ({DEFAULT_ROUNDS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else DEFAULT_ROUNDS)

    pin_load()
    try:
        with redis_server() as redis_url:
            stage = Stage(redis_url, options.quick, rounds)
            found = environment(redis_url, shlex.join(["python", "-m", "bench", *sys.argv[1:]]))
            print_environment(found)
            try:
                SCENARIOS[options.scenario](stage)
            finally:
                stage.forget_topics()
    except (ServerFailed, LoadFailed) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return EXIT_NOT_MEASURED

    outcome = stage.outcome
    print_outcome(outcome)
    if options.json:
        figures = {"scenario": options.scenario, "quick": options.quick, "rounds": rounds, **found}
        figures |= {"rows": outcome.rows, "notes": outcome.notes, "violations": outcome.violations}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return EXIT_VIOLATED if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())

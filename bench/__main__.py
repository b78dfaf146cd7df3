"""python -m bench NAME ... [--quick] [--rounds N] [--sides A,B] [--results FOLDER] [--plot]"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

try:
    from bench import environment, page, plot, results, table
    from bench.load import LoadFailed
    from bench.peers import SIDES, Limit, Side, Stalecast
    from bench.processes import ServerFailed, pin_load, redis_server
    from bench.results import Result, Skipped
    from bench.scenarios import SCENARIOS
    from bench.stage import Stage
except ModuleNotFoundError as error:
    if error.name and error.name.split(".")[0] in ("app", "bench"):
        raise
    sys.exit(f"the bench needs {error.name}: pip install --require-hashes -r requirements-bench.txt")

DEFAULT_ROUNDS = 3  # A B A B A B
RESULTS_FOLDER = Path(__file__).resolve().parent / "results"
QUICK_FOLDER = RESULTS_FOLDER / "quick"  # what says nothing about speed must not overwrite what does
EXIT_VIOLATED = 1
EXIT_NOT_MEASURED = 2


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.scenario) - {*SCENARIOS, "all"}:
        parser.error(f"no scenario is called {sorted(unknown)[0]!r}: {', '.join(SCENARIOS)} or all")
    if not options.scenario and not options.plot:
        parser.error("name a scenario, or ask for --plot of what is in the results folder")
    folder: Path = options.results or (QUICK_FOLDER if options.quick else RESULTS_FOLDER)
    names = list(SCENARIOS) if "all" in options.scenario else options.scenario
    status = 0
    if names:
        sides, skipped = _choose(options.sides)
        if skipped and options.require_all:
            for skip in skipped:
                print(f"{skip.side}: {skip.why}: {skip.install}", file=sys.stderr)
            return EXIT_NOT_MEASURED
        pin_load()
        try:
            with redis_server() as redis_url:
                for name in names:
                    rounds = options.rounds or (1 if options.quick else DEFAULT_ROUNDS)
                    result, unmeasured = _measure(
                        name, redis_url, sides, skipped, rounds, quick=options.quick
                    )
                    result.write(folder / f"{name}.json")
                    table.show(result)
                    if unmeasured and options.require_all:
                        print(f"{name}: without figures: {'; '.join(unmeasured)}", file=sys.stderr)
                        status = EXIT_NOT_MEASURED
                    if result.violations:
                        status = EXIT_VIOLATED
        except (ServerFailed, LoadFailed) as error:
            print(f"not measured: {error}", file=sys.stderr)
            return EXIT_NOT_MEASURED
    if options.plot:
        found = {path.stem: results.read(path) for path in sorted(folder.glob("*.json"))}
        for path in [*plot.plot_all(found, folder), page.write_page(found, folder / "report.html")]:
            print(path)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures Stalecast beside what else one could use."
    )
    names = [*SCENARIOS, "all"]
    # Not as `choices`: with those, argparse refuses to be given no name at all.
    parser.add_argument("scenario", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="small counts: checks promises, not speed")
    parser.add_argument("--rounds", type=int, help=f"visits to each side, in turn ({DEFAULT_ROUNDS})")
    parser.add_argument("--sides", help="only these: " + ",".join(side.name for side in SIDES))
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=f"instead of {RESULTS_FOLDER.name}/")
    parser.add_argument("--plot", action="store_true", help="plots and report.html of the results folder")
    parser.add_argument("--require-all", action="store_true", help="fail where a peer has no figures")
    return parser


def _choose(wanted: str | None) -> tuple[list[Side], list[Skipped]]:
    """Stalecast and the limit are always among them: the promises are Stalecast's, the ratios the limit's."""
    names = {side.name for side in SIDES} if wanted is None else set(wanted.split(","))
    if unknown := names - {side.name for side in SIDES}:
        sys.exit(f"no side is called {sorted(unknown)[0]!r}: {', '.join(side.name for side in SIDES)}")
    sides: list[Side] = []
    skipped: list[Skipped] = []
    for side in SIDES:
        if side.name not in names and not isinstance(side, Stalecast | Limit):
            continue
        missing = side.missing()
        if missing is None:
            sides.append(side)
        else:
            skipped.append(Skipped(side.name, missing, side.install))
    return sides, skipped


def _measure(
    name: str, redis_url: str, sides: Sequence[Side], skipped: Sequence[Skipped], rounds: int, *, quick: bool
) -> tuple[Result, list[str]]:
    """And what was to be measured and was not, in words."""
    versions = {key: value for side in sides for key, value in side.versions().items()}
    machine, versions = environment.describe(redis_url, versions)
    result = Result(
        scenario=name,
        quick=quick,
        rounds=rounds,
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        versions=versions,
        skipped=list(skipped),
    )
    with table.Progress() as progress:
        stage = Stage(redis_url, quick, rounds, sides, progress, result)
        try:
            SCENARIOS[name](stage)
        finally:
            stage.forget_topics()
    return result, stage.unmeasured()


if __name__ == "__main__":
    sys.exit(main())

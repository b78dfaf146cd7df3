"""`python -m tests.pythons`: suite and delivery checker under every other Python that this machine has.

Looked for on PATH and beside the one that runs this (where pyenv and its kin keep them). Each gets an
environment of its own, `.venv-3.x`, with what the lock file says. What starts browsers, compilers, proxies or
many processes is left to the main Python: it is about what they do rather than about ours.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
REQUIREMENTS = PROJECT / "requirements-dev.txt"
# With the trove classifiers in pyproject.toml that are proven; test_packaging.py compares.
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
INSTALL_LIMIT_S = 300
SUITE_LIMIT_S = 1500
BEGINNING_LINES = 12
ELSEWHERE = ("bench_*", "browser", "clients", "deploy", "embedded", "packaging", "process")


class Failed(Exception):
    """With the output of what failed."""


def find(version: str) -> str | None:
    """An interpreter of exactly that version that works: pyenv's shims do not, unless it is switched on."""
    candidates = [shutil.which(f"python{version}")]
    siblings = Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python3")
    candidates += sorted(map(str, siblings), reverse=True)
    ask = "import sys, venv, ensurepip; print(f'{sys.version_info.major}.{sys.version_info.minor}')"
    for candidate in candidates:
        if candidate is not None:
            answer = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
            if answer.stdout.strip() == version:
                return candidate
    return None


def prepare(python: str, version: str) -> str:
    """The environment's interpreter. Raises Failed."""
    folder = PROJECT / f".venv-{version}"
    inside, stamp = str(folder / "bin" / "python"), folder / ".installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        run([python, "-m", "venv", str(folder)], INSTALL_LIMIT_S)
        pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--require-hashes"]
        run([inside, *pip, "-r", str(REQUIREMENTS)], INSTALL_LIMIT_S)
        stamp.write_text(wanted)
    return inside


def run(argv: Sequence[str], limit_s: float) -> str:
    """Its last line. Raises Failed."""
    try:
        ended = subprocess.run(
            argv, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(str(error)) from error
    if ended.returncode:
        raise Failed(f"{' '.join(argv)}\n{ended.stdout}{ended.stderr}")
    return (ended.stdout.strip().splitlines() or [""])[-1]


def try_one(version: str, rounds: int) -> tuple[bool, str]:
    """Whether nothing is wrong, and what came of it."""
    python = find(version)
    if python is None:
        return True, f"Python {version}: skipped, there is none on this machine"
    started_s = time.monotonic()
    files = set(PROJECT.glob("tests/test_*.py"))
    for name in ELSEWHERE:
        files -= set(PROJECT.glob(f"tests/test_{name}.py"))
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(map(str, files))]
    try:
        inside = prepare(python, version)
        told = run([inside, *suite], SUITE_LIMIT_S)
        run([inside, "-m", "tests.delivery", "--rounds", str(rounds), "--seed", "0"], SUITE_LIMIT_S)
    except Failed as failed:
        return False, f"Python {version}: {failed}"
    seconds = time.monotonic() - started_s
    return True, f"Python {version}: {told}; {rounds} rounds without a violation; {seconds:.0f} s in all"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="of the delivery checker (default 100)")
    options = parser.parse_args()
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = [version for version in VERSIONS if version != own]
    failures: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for passed, what in pool.map(lambda version: try_one(version, options.rounds), others):
            print(what, flush=True)
            if not passed:
                failures.append(what)
    # Once more, for whoever sees the end only: which it was, and how it began.
    for what in failures:
        print("", "failed:", *what.splitlines()[:BEGINNING_LINES], sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

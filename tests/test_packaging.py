"""What is beside the code: a fresh clone, a platform's builder and README's commands find what they need."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import pythons
from servers import HOST, PROJECT, RedisServer, free_port, run_app, run_redis

SOON_S = 10.0
FRESH_LIMIT_S = 300.0


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def procfile_argv() -> list[str]:
    name, _, command = (PROJECT / "Procfile").read_text().strip().partition(": ")
    assert name == "web"
    python, *arguments = shlex.split(command)
    assert python == "python"
    return [sys.executable, *arguments]


def test_the_procfile_runs_as_it_is(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = {"PORT": str(free_port()), "WEB_CONCURRENCY": "2"}
    with run_app(tmp_path, redis_url=redis_server.url, wait_ready=False, settings=settings) as server:
        server.kill()
        server.argv, server.port = procfile_argv(), int(settings["PORT"])
        server.start()
        assert server.get("/readyz")[0] == 200
        assert server.get("/")[0] == 404
        server.terminate()
        assert server.wait_ended(SOON_S) == 0


def test_the_procfile_refuses_to_serve_without_a_redis(tmp_path: Path) -> None:
    """A platform's disk is lost at each restart, and no two instances would have the same store."""
    with run_app(tmp_path, redis_url=None, wait_ready=False, settings={"PORT": str(free_port())}) as server:
        server.kill()
        server.argv = procfile_argv()
        server.spawn()
        assert server.wait_ended(SOON_S) == 2
        told = json.loads(server.output().splitlines()[-1])["error"]
        assert told.startswith("REDIS_URL is not set")
        assert told.endswith("no two instances would have the same.)"), "in full"
    assert not (tmp_path / ".stalecast").exists()


def test_builders_are_told_a_python_that_the_project_supports() -> None:
    """Heroku, Railpack, uv and pyenv all take `major.minor`; a patch release would miss security fixes."""
    version = (PROJECT / ".python-version").read_text()
    assert re.fullmatch(r"3\.\d+\n", version)
    requires = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, requires.removeprefix(">=").split(".")))


def test_every_python_that_is_named_is_one_that_the_suite_is_run_under() -> None:
    classifiers = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["classifiers"]
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in classifiers]
    named = {one[1] for one in found if one}
    assert named
    assert named <= set(pythons.VERSIONS)


@pytest.mark.parametrize("path", sorted(PROJECT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_requirements_are_pinned_by_hash_and_name_no_registry(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    for requirement in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip()):
        assert "==" in requirement
        assert "--hash=sha256:" in requirement


@pytest.mark.skipif("REQUIRE_ALL" not in os.environ, reason="needs a registry, and half a minute")
def test_a_fresh_clone_has_the_command_that_the_readme_names(tmp_path: Path) -> None:
    clone, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file() and not name.startswith("client/"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, clone / name)
    environment = {**os.environ, "HOME": str(home)}
    subprocess.run(
        ["make", f"PYTHON={sys.executable}", ".venv/.serve"],
        cwd=clone, env=environment, check=True, capture_output=True, timeout=FRESH_LIMIT_S,
    )  # fmt: skip
    stalecast = str(clone / ".venv/bin/stalecast")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with run_app(elsewhere, redis_url=None, wait_ready=False) as server:
        server.kill()
        server.argv = [stalecast, "serve", "--host", HOST, "--port", str(server.port)]
        server.env.pop("PYTHONPATH", None)
        server.start()
        published = subprocess.run(
            [stalecast, "publish", "42", "--id", "7", "--reason", "edited"],
            cwd=elsewhere, env=server.env, check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert re.fullmatch(r"\d+-\d+\n", published.stdout)

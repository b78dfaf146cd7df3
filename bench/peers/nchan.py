"""nchan: an nginx module in C that keeps its channels in Redis, in keys of its own instead of our streams.

Its order of things, which a scenario must leave time for: a subscriber is greeted first and looked up in
Redis afterwards, and one without an id starts behind whatever was published until then.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from redis.connection import parse_url

from bench.peers.side import HEARTBEAT_S, Dialect, Side
from bench.ports import free_port
from bench.processes import SERVER_CPU, Server, ServerFailed
from bench.publisher import DEFAULT_REASON, NchanPublisher, Publisher
from bench.redis_socket import DEFAULT_PORT

TEMPLATE = Path(__file__).with_name("nchan.conf")
MODULE_NAME = "ngx_nchan_module.so"
DEFAULT_MODULES_FOLDER = "/usr/lib/nginx/modules"
READY_PATH = "/ready"
PUBLISH_PATH_PREFIX = "/publish/"
SYSTEM_PATH = "/usr/sbin:/usr/local/sbin"  # where nginx is, and where a user's own PATH need not lead
UNKNOWN = "unknown"


class Nchan(Side):
    name = "nchan"
    install = "apt-get install nginx libnginx-mod-nchan"
    # The first block is the comment `: hi`; ids come with events only.
    dialect = Dialect(greeting_mark=b"\n:")

    def missing(self) -> str | None:
        nginx = _nginx()
        if nginx is None:
            return "nginx is not installed"
        module = _module(nginx)
        return None if module.exists() else f"nginx has no {module}"

    def versions(self) -> dict[str, str]:
        nginx = re.search(r"nginx/([\d.]+)", _about(_nginx() or "nginx"))
        return {"nginx": nginx[1] if nginx else UNKNOWN, "nchan": _nchan_version()}

    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        """Raises `ServerFailed` if Redis can only be reached by a Unix socket or TLS."""
        port, nginx = free_port(), _nginx() or "nginx"
        server, login = _redis_settings(redis_url)
        words = {
            "MODULE": str(_module(nginx)),
            "PORT": str(port),
            "HEARTBEAT_S": str(heartbeat_s),
            "REDIS_SERVER": server,
            "REDIS_LOGIN": login,
        }
        config = re.sub("@([A-Z_]+)@", lambda word: words[word[1]], TEMPLATE.read_text())
        path = folder / TEMPLATE.name
        path.write_text(config)
        # The worker of an nginx that root started would be `nobody`, to whom `folder` is closed.
        user = ["-g", "user root;"] if os.geteuid() == 0 else []
        command = [nginx, "-p", str(folder), "-e", "stderr", "-c", str(path), *user]
        return Server(self.name, port, command, {}, SERVER_CPU, READY_PATH)

    def publisher(self, redis_url: str, server: Server, reason: bytes = DEFAULT_REASON) -> Publisher:
        return NchanPublisher(server.port, PUBLISH_PATH_PREFIX, reason)


def _nginx() -> str | None:
    return shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", os.defpath), SYSTEM_PATH)))


def _about(nginx: str) -> str:
    return subprocess.run([nginx, "-V"], stderr=subprocess.PIPE, text=True, check=True).stderr


def _module(nginx: str) -> Path:
    found = re.search(r"--modules-path=(\S+)", _about(nginx))
    return Path(found[1] if found else DEFAULT_MODULES_FOLDER) / MODULE_NAME


def _nchan_version() -> str:
    """The module itself tells it only while it runs; Debian's version is `1:1.3.6+dfsg-2`."""
    if shutil.which("dpkg-query") is None:
        return UNKNOWN
    command = ["dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan"]
    found = re.match(r"(?:\d+:)?(\d[\d.]*)", subprocess.run(command, capture_output=True, text=True).stdout)
    return found[1] if found else UNKNOWN


def _redis_settings(redis_url: str) -> tuple[str, str]:
    """The server and the login, which nchan takes from a URL as it stands, without percent decoding."""
    if not redis_url.startswith("redis://"):
        raise ServerFailed("nchan is only set up to reach Redis by plain TCP: REDIS_URL must be redis://...")
    options: dict[str, Any] = dict(parse_url(redis_url))
    host, port = options.get("host", "127.0.0.1"), options.get("port", DEFAULT_PORT)
    login = [
        f"nchan_redis_{name} {_quoted(options[name])};"
        for name in ("username", "password")
        if options.get(name)
    ]
    return f"redis://{host}:{port}/{options.get('db', 0)}", " ".join(login)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

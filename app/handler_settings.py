"""What every connection's handler and its protocols go by."""

from typing import Final

from app.cors import Cors

CONNECTION_STATE_KEY: Final = "stalecast.connection"
CLOSE_TIMEOUT_S: Final = 2.0


class HandlerSettings:
    """Of this process; set by serving.py's `configure` before the first connection."""

    send_timeout_s: float = 30.0
    request_head_timeout_s: float = 10.0
    connections_limit: int = 1 << 20
    # With fewer connections than this there cannot be as many streams as the settings allow.
    crowded_connections: int = 10_000
    cors: Cors = Cors(())

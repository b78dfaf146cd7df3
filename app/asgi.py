"""`app.asgi:app`, for any ASGI server: settings from the environment, REDIS_URL required.

TLS, addresses and workers are the other server's business, and so are the other lines of the log.
"""

import sys

import structlog
from quart_trio import QuartTrio

from app import startup
from app.contracts import InvalidEventType
from app.logging import configure_logging
from app.process import CONFIGURATION_STATUS
from app.redis_connection import InvalidRedisUrl
from app.web import create_app


def _create() -> QuartTrio:
    settings = startup.read_settings()
    configure_logging(settings)
    startup.warn(settings)
    if settings.redis_url is None:
        raise startup.Misconfigured("REDIS_URL is not set: only `stalecast serve` brings a store of its own")
    if settings.tls_certfile is not None or settings.tls_keyfile is not None:
        structlog.get_logger("stalecast.asgi").warning(
            "tls_settings_unused",
            hint="`stalecast serve` reads them; give this server the files in its own way",
        )
    return create_app(settings)


try:
    app = _create()
except (startup.Misconfigured, InvalidRedisUrl, InvalidEventType) as error:
    sys.stderr.write(f"stalecast: {error}\n")
    sys.exit(CONFIGURATION_STATUS)

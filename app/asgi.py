"""`app.asgi:app`, for any ASGI server: settings from the environment, REDIS_URL required."""

from app.logging import configure_logging
from app.settings import Settings
from app.web import create_app

_settings = Settings()  # pyright: ignore[reportCallIssue] from the environment
configure_logging(_settings)
app = create_app(_settings)

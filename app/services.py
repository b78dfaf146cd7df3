"""What one process runs: the Redis client, the tails and the hub, started and ended together."""

import structlog
import trio

from app.contracts import load_registry
from app.redis_connection import Address, Client, RedisError, RedisRefused, RedisUnavailable
from app.serving import Context
from app.settings import Settings
from app.streams.hub import Hub
from app.streams.reading import examine
from app.streams.tail import Tails

# A readiness probe is asked every few seconds and must not queue up behind a Redis that hangs.
READINESS_TIMEOUT_S = 1.0
# The share of the drain time after which clients that took nothing are cut, so that the process ends within
# it.
ABORT_AFTER = 0.9

_log = structlog.get_logger("stalecast.services")


def public_reason(error: RedisError) -> str:
    """For anybody to see: the kind of trouble, without addresses, users and Redis's own words, which are in
    the log."""
    return error.public


class Services:
    """Started with `await nursery.start(services.run)`, ended by `stop`."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidRedisUrl or InvalidEventType."""
        if settings.redis_url is None:
            raise ValueError("no Redis: set REDIS_URL, or start with `stalecast serve`, which brings its own")
        self.settings = settings
        self.registry = load_registry(settings.events_module)
        address = Address.from_url(settings.redis_url)
        self.client = Client(
            address, timeout_s=settings.redis_timeout_s, waiting_limit=settings.redis_waiting_limit_calls
        )
        self.tails = Tails(
            address,
            self.client,
            group_limit_topics=settings.tail_group_limit_topics,
            read_limit_events=settings.tail_read_limit_events,
            timeout_s=settings.redis_timeout_s,
            limit_groups=settings.tail_limit_connections,
        )
        self.hub = Hub(settings, self.registry, self.client, self.tails)
        self.failed = False
        # What does not stand in the way of streams, as `wait_ready` has found it last.
        self.readiness_warnings: list[str] = []
        self._scope = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.client.run)
                    await nursery.start(self.hub.run)
                    if Context.current is not None:
                        nursery.start_soon(self._drain_when_terminated, Context.current)
                    task_status.started()
        except Exception:
            # Hypercorn would log a failed lifespan and go on serving without a hub. Better no server: the
            # supervisor, or the platform, starts a new one.
            self.failed = True
            _log.critical("services_failed", exc_info=True)
            if Context.current is None:
                raise
            await Context.current.terminate.set()
            # Nobody is left to say goodbye: better a cut, which every client answers by coming back, than a
            # stream on which nothing comes any more.
            Context.current.abort_connections()

    def stop(self) -> None:
        self._scope.cancel()

    async def _drain_when_terminated(self, context: Context) -> None:
        await context.wait_terminated()
        end_at_s = trio.current_time() + ABORT_AFTER * self.settings.drain_s
        await self.hub.drain(self.settings.drain_s)
        await trio.sleep_until(end_at_s)
        context.abort_connections()

    async def wait_ready(self) -> str | None:
        """None when streams can be served, or what stands in the way."""
        if self.hub.draining:
            return "draining"
        try:
            with trio.fail_after(READINESS_TIMEOUT_S):
                examination = await examine(self.client)
        except trio.TooSlowError:
            trouble = self.client.trouble  # it may wait before it tries to connect again
            return f"redis: {'no answer' if trouble is None else public_reason(trouble)}"
        except (RedisUnavailable, RedisRefused) as error:
            # Why there is no connection says more than that there is none.
            return f"redis: {public_reason(self.client.trouble or error)}"
        self.readiness_warnings = examination.warnings
        if examination.obstacles:
            return f"redis: {'; '.join(examination.obstacles)}"
        away = self.tails.statistics().away_groups
        return f"redis: {away} connections for live reading are away" if away else None

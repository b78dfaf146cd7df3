"""Everything that is measured, Stalecast and the limit first."""

from bench.peers.better_sse import BetterSse
from bench.peers.limit import Limit
from bench.peers.nchan import Nchan
from bench.peers.quart_trio import QuartTrioGenerator
from bench.peers.side import Side
from bench.peers.sse_starlette import SseStarlette
from bench.peers.stalecast import Stalecast

SIDES: tuple[Side, ...] = (Stalecast(), Limit(), Nchan(), BetterSse(), SseStarlette(), QuartTrioGenerator())

__all__ = ["SIDES", "Limit", "Side", "Stalecast"]

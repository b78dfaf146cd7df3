"""What is measured. Every leg gets a fresh server process, so that none pays for the one before it."""

from collections.abc import Callable, Mapping

from bench.scenarios.arrival import connect, resume
from bench.scenarios.delivery import burst, latency, topics
from bench.scenarios.drain import drain
from bench.scenarios.hostile import hostile
from bench.scenarios.memory import memory
from bench.scenarios.scale import scale
from bench.scenarios.slow import slow
from bench.stage import Stage

SCENARIOS: Mapping[str, Callable[[Stage], None]] = {
    "latency": latency,
    "burst": burst,
    "topics": topics,
    "connect": connect,
    "resume": resume,
    "slow": slow,
    "memory": memory,
    "scale": scale,
    "drain": drain,
    "hostile": hostile,
}

"""What may travel: the envelope, the registry of event types, and their JSON Schema.

Everything that decides whether a payload is valid lives here. Two doors use it: publishing validates strictly
against the registered type; reading accepts any event name with the envelope's shape, because during a
rolling deploy a producer may already know a type that this server does not, and dropping it would be a silent
gap.
"""

import functools
import importlib
import json
import operator
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    create_model,
)

# Enough for a UUID, a slug or a URN; an invalidation names a thing, it does not carry it.
_ID_LIMIT_CHARS = 256
_REASON_LIMIT_CHARS = 256
# JavaScript reads JSON numbers as doubles: beyond 2**53 - 1 two ids would become one.
_ID_LIMIT_INT = 2**53 - 1

# The server's own word to a client: where it stands. Nobody else may say it, so it is never in a stream.
POSITION = "position"

EventName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\-]{1,64}$")]
Reason = Annotated[StrictStr, StringConstraints(min_length=1, max_length=_REASON_LIMIT_CHARS)]
ResourceId = (
    Annotated[StrictStr, StringConstraints(min_length=1, max_length=_ID_LIMIT_CHARS)]
    | Annotated[StrictInt, Field(ge=-_ID_LIMIT_INT, le=_ID_LIMIT_INT)]
)


class ContractViolation(ValueError):
    """An event that the contract refuses; the producer's fault. `errors` lists (location, message)."""

    def __init__(self, summary: str, errors: list[tuple[str, str]]) -> None:
        super().__init__(summary + "".join(f"; {location}: {message}" for location, message in errors))
        self.summary = summary
        self.errors = errors


class InvalidEventType(ValueError):
    """An event type that cannot be registered; the application's fault."""


class Invalidation(BaseModel):
    """The data of an event: which thing is stale and why. Never the thing itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: ResourceId = Field(description="Which resource went stale.")
    reason: Reason = Field(description="Why, as a short word the client may branch on.")


class ReloadData(BaseModel):
    """The data of `reload_required`: no id, because everything of the topic may be stale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason = Field(
        description="`trimmed`, `overflow`, `invalid_id`, `unreadable`, or a producer's own word."
    )


class PositionData(BaseModel):
    """The data of `position`: nothing. What counts is the `id:` of its block, from where a client resumes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class EventType:
    """One kind of event: its name, the model of its data, and whether an older event with the same
    (event, id) may be dropped for a newer one when a client has fallen behind."""

    name: str
    data_model: type[BaseModel]
    conflatable: bool = True


class Registry:
    """The event types this process may publish. An application adds its own in a module that defines
    `register(registry)` and is named by the setting STALECAST_EVENTS_MODULE."""

    def __init__(self) -> None:
        self._types: dict[str, EventType] = {}

    def register(self, event_type: EventType) -> None:
        """Add a type. Raises InvalidEventType when the name is malformed or taken, or when the data model
        would let anything but `id` and `reason` travel."""
        if not re.fullmatch(r"[A-Za-z0-9_.:\-]{1,64}", event_type.name):
            raise InvalidEventType(
                f"event name {event_type.name!r}: use 1 to 64 letters, digits, '_', '.', ':' or '-'"
            )
        if event_type.name == POSITION:
            raise InvalidEventType(f"event name {POSITION!r} is the server's own: choose another")
        if event_type.name in self._types:
            raise InvalidEventType(f"event type {event_type.name!r} is already registered")
        fields = set(event_type.data_model.model_fields)
        if not fields <= {"id", "reason"} or "reason" not in fields:
            raise InvalidEventType(
                f"event type {event_type.name!r}: data may hold `id` and `reason` only, "
                f"but {event_type.data_model.__name__} has {sorted(fields)}"
            )
        if event_type.data_model.model_config.get("extra") != "forbid":
            raise InvalidEventType(
                f"event type {event_type.name!r}: {event_type.data_model.__name__} must set extra='forbid' "
                "(subclass app.contracts.Invalidation)"
            )
        self._types[event_type.name] = event_type

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._types.values())

    def is_conflatable(self, event: str) -> bool:
        """An unknown type is kept whole: only its owner can say that events of it supersede each other."""
        known = self._types.get(event)
        return known is not None and known.conflatable

    def encode(self, event: str, data: Any) -> bytes:
        """The compact JSON envelope of a valid event. Raises ContractViolation otherwise."""
        known = self._types.get(event)
        if event == POSITION:
            raise ContractViolation(
                f"{POSITION!r} is what the server tells each client by itself: it cannot be published", []
            )
        if known is None:
            raise ContractViolation(
                f"unknown event type {event!r}: known are {', '.join(sorted(self._types))}; "
                "an application registers its own in the module that STALECAST_EVENTS_MODULE names",
                [],
            )
        try:
            model = known.data_model.model_validate(data)
        except ValidationError as error:
            raise ContractViolation(
                f"invalid data for {event!r}", list(_readable(error, prefix="data"))
            ) from None
        payload = json.dumps(
            {"event": event, "data": model.model_dump(mode="json", exclude_none=True)},
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        decode(payload)  # whatever an application's own model allows, every reader must accept it
        return payload

    def envelope_adapter(self) -> TypeAdapter[Any]:
        """The union of all envelopes, told apart by `event`."""
        # Types that are only known at run time, which no type checker follows.
        envelopes: list[Any] = [
            create_model(
                "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]+", kind.name)) + "Envelope",
                __config__=ConfigDict(extra="forbid"),
                event=(Literal[kind.name], ...),  # pyright: ignore
                data=(kind.data_model, ...),
            )
            for kind in (*self._types.values(), _POSITION_TYPE)
        ]
        union: Any = functools.reduce(operator.or_, envelopes)  # pyright: ignore
        return TypeAdapter(Annotated[union, Discriminator("event")])  # pyright: ignore

    def json_schema(self, at: str = "#") -> dict[str, Any]:
        """JSON Schema (2020-12) of every envelope a client may receive; its references begin with `at`, where
        it stands in a document."""
        schema = self.envelope_adapter().json_schema(ref_template=f"{at}/$defs/{{model}}")
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "SseEnvelope",
            "description": "The JSON in the data field of each Server-Sent Event.",
            **schema,
        }


_POSITION_TYPE = EventType(POSITION, PositionData, conflatable=False)


def builtin_registry() -> Registry:
    registry = Registry()
    registry.register(EventType("argument_updated", Invalidation))
    # Not conflated: each one marks a point in the order of events.
    registry.register(EventType("reload_required", ReloadData, conflatable=False))
    return registry


def load_registry(events_module: str | None) -> Registry:
    """The built-in types and those of the application's module.

    Raises InvalidEventType when the module cannot be imported, has no `register`, or registers a bad type.
    """
    registry = builtin_registry()
    if events_module is None:
        return registry
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m app` has it, also for the `stalecast` script
    try:
        module = importlib.import_module(events_module)
    except (Exception, SystemExit) as error:
        raise InvalidEventType(
            f"STALECAST_EVENTS_MODULE={events_module!r} cannot be imported: {error!r}; "
            "it must be the name of a module on the Python path of the server, as `import` takes it"
        ) from error
    register = getattr(module, "register", None)
    if not callable(register):
        raise InvalidEventType(f"module {events_module!r} defines no function `register(registry)`")
    try:
        register(registry)
    except InvalidEventType:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidEventType(f"`register` of module {events_module!r} failed: {error!r}") from error
    return registry


class _ReceivedData(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: ResourceId | None = None
    reason: Reason


class _Received(BaseModel):
    model_config = ConfigDict(extra="forbid")

    event: EventName
    data: _ReceivedData


class Envelope(NamedTuple):
    """A payload read from a stream: what it is about, and its canonical JSON (one line, so that it cannot
    break out of an SSE data field)."""

    event: str
    resource_id: str | int | None
    json: bytes


# What `Registry.encode` writes for plain ASCII without escapes, which is nearly everything. Matching its
# shape takes a fraction of a validation, on the way of every event (65 us less from a cold cache).
_CANONICAL = re.compile(
    rb'\{"event":"(?!' + POSITION.encode() + rb'")([A-Za-z0-9_.:\-]{1,64})","data":\{'
    rb'(?:"id":(?:"([ !#-\[\]-~]{1,256})"|(0|-?[1-9][0-9]{0,14})),)?"reason":"[ !#-\[\]-~]{1,256}"\}\}'
)


def decode(payload: bytes) -> Envelope:
    """Read a payload that any writer may have appended. Raises ContractViolation."""
    match = _CANONICAL.fullmatch(payload)
    if match is not None:
        event, text, number = match.groups()
        resource_id = text.decode() if text is not None else int(number) if number is not None else None
        return Envelope(event.decode(), resource_id, payload)
    try:
        received = _Received.model_validate_json(payload)
    except ValidationError as error:
        raise ContractViolation("not an envelope", list(_readable(error))) from None
    if received.event == POSITION:
        raise ContractViolation(f"{POSITION!r} is the server's own word: no event of a stream may say it", [])
    return Envelope(received.event, received.data.id, received.model_dump_json(exclude_none=True).encode())


def _readable(error: ValidationError, prefix: str | None = None) -> Iterator[tuple[str, str]]:
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        location = ".".join(str(part) for part in detail["loc"])
        yield ".".join(part for part in (prefix, location) if part) or "body", detail["msg"]

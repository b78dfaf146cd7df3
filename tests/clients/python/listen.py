"""One library on one stream, as `listen.mjs` does it: `python listen.py LIBRARY URL`."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import httpx_sse
import ld_eventsource
import ld_eventsource.config
import requests
import sseclient

RETRY_S = 0.5  # for libraries that leave the reconnecting to the application


def say(**line: str) -> None:
    print(json.dumps(line), flush=True)


def on_message(data: str) -> None:
    say(message=data)
    envelope: dict[str, Any] = json.loads(data)
    if envelope["event"] == "reload_required":
        say(reload=envelope["data"]["reason"])
    elif envelope["event"] == "argument_updated":
        say(heard=envelope["data"]["id"])


def follow_with_httpx_sse(url: str) -> None:
    last_event_id = ""
    while True:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            with (
                httpx.Client() as client,
                httpx_sse.connect_sse(client, "GET", url, headers=headers) as source,
            ):
                source.response.raise_for_status()
                for sse in source.iter_sse():
                    last_event_id = sse.id or last_event_id
                    on_message(sse.data)
        except httpx.HTTPError as error:
            say(failed=repr(error))
        time.sleep(RETRY_S)


def follow_with_sseclient_py(url: str) -> None:
    last_event_id = ""
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            with requests.get(url, headers=headers, stream=True, timeout=(5, 10)) as response:
                response.raise_for_status()
                for event in sseclient.SSEClient(response).events():
                    last_event_id = event.id or last_event_id
                    on_message(event.data)
        except requests.RequestException as error:
            say(failed=repr(error))
        time.sleep(RETRY_S)


def follow_with_launchdarkly(url: str) -> None:
    client = ld_eventsource.SSEClient(
        ld_eventsource.config.ConnectStrategy.http(url),
        error_strategy=ld_eventsource.config.ErrorStrategy.always_continue(),
    )
    for event in client.events:
        on_message(event.data)


LIBRARIES: dict[str, Callable[[str], None]] = {
    "httpx-sse": follow_with_httpx_sse,
    "sseclient-py": follow_with_sseclient_py,
    "launchdarkly-eventsource (Python)": follow_with_launchdarkly,
}

if __name__ == "__main__":
    LIBRARIES[sys.argv[1]](sys.argv[2])

"""What every error is answered with: RFC 9457, also where the application was not asked."""

import json
from http import HTTPStatus
from typing import Final

PROBLEM_TYPE: Final = "application/problem+json"


def problem_json(status: HTTPStatus, detail: str) -> bytes:
    problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    return json.dumps(problem).encode()

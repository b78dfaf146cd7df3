"""The delivery checker: random faults against a running server, judged by a pure oracle."""

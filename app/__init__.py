"""Stalecast tells web clients what went stale: see ARCHITECTURE.md for the way of an event through these
files."""

__version__ = "0.1.0"

"""Connections that nobody would make, against a real server process."""

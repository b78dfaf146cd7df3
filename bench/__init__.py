"""Measures Stalecast beside the fastest thing Python can do on the same machine. See README.md."""

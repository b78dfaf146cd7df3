"""Latencies as HdrHistograms of microseconds. Only this file knows their range, precision and encoding.

A histogram holds every sample, is merged without loss and names a value to three significant digits;
percentiles that were worked out apart cannot be merged at all (hdrhistogram.org).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram

US_PER_MS = 1000
NS_PER_US = 1000
LOWEST_US = 1
HIGHEST_US = 3_600_000_000  # an hour: nothing waits so long for a receipt
SIGNIFICANT_DIGITS = 3
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0}


def new_histogram() -> HdrHistogram:
    return HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS)


def record_ns(histogram: HdrHistogram, latencies_ns: np.ndarray[Any, Any]) -> None:
    """Counts every sample, rounded up to a microsecond. Raises ValueError, and counts none, if one is
    negative or above the range."""
    values_us, counts = np.unique(-(-latencies_ns // NS_PER_US), return_counts=True)
    if len(values_us) and not 0 <= values_us[0] <= values_us[-1] <= HIGHEST_US:
        raise ValueError(f"latencies from {values_us[0]} to {values_us[-1]} us: no clock gives that")
    for value_us, count in zip(values_us.tolist(), counts.tolist(), strict=True):
        histogram.record_value(max(LOWEST_US, value_us), count)


def encode(histogram: HdrHistogram) -> str:
    """HdrHistogram's V2 format, compressed, in base64: any HdrHistogram library reads it."""
    return histogram.encode().decode("ascii")


def decode(text: str) -> HdrHistogram:
    """Raises what the library does if `text` is nothing that `encode` returned."""
    return HdrHistogram.decode(text)


def merge(texts: Iterable[str]) -> HdrHistogram:
    merged = new_histogram()
    for text in texts:
        merged.add(decode(text))
    return merged


def percentiles(histogram: HdrHistogram) -> dict[str, float]:
    """`p50_ms`, `p90_ms`, `p99_ms` and `max_ms`. Raises ValueError without samples."""
    if not histogram.get_total_count():
        raise ValueError("no samples, no percentiles")
    found_us = histogram.get_percentile_to_value_dict(list(PERCENTILES.values()))
    figures = {name: found_us[percentile] / US_PER_MS for name, percentile in PERCENTILES.items()}
    return {**figures, "max_ms": histogram.get_max_value() / US_PER_MS}


def cdf(histogram: HdrHistogram) -> tuple[list[float], list[float]]:
    """For a plot: latencies in ms, rising, and the share of all samples that is at most so late. Both are
    empty without samples."""
    counts = np.frombuffer(histogram.counts, np.uint64)
    indexes = np.flatnonzero(counts)
    values_us = [
        histogram.get_highest_equivalent_value(histogram.get_value_from_index(int(index)))
        for index in indexes
    ]
    shares = np.cumsum(counts[indexes]) / max(1, histogram.get_total_count())
    return [value_us / US_PER_MS for value_us in values_us], shares.tolist()

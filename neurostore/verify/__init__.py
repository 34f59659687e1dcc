"""Verification and repair: what is sound in a file, said record by record, and saved.

A damaged file can crash HDF5 or make it run for ever, so another process reads it, with a limit
of time and of memory; what happens to that process is a finding about the record it was at, and
checking goes on with the next one.  What is wrong with a record is found by
`neurostore.soundness`.
"""

from __future__ import annotations

from .checking import MEMORY_LIMIT, TIME_LIMIT, Progress, verify
from .repairing import repair
from .report import Finding, RecordReport, Repair, Report

__all__ = [
    "MEMORY_LIMIT",
    "TIME_LIMIT",
    "Finding",
    "Progress",
    "RecordReport",
    "Repair",
    "Report",
    "repair",
    "verify",
]

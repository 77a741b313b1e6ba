"""What a row of the table of faults says."""

from typing import NamedTuple


class Outcome(NamedTuple):
    fault: str
    count: int
    passed: int
    note: str  # the worst figures

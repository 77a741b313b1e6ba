"""A row of the table of faults: what was done to the program, how often, and how often it did what it must."""

from typing import NamedTuple


class Outcome(NamedTuple):
    fault: str
    count: int
    passed: int
    note: str  # the worst figures

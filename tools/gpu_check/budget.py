"""The time that the parts of the check may take."""

import time

# The share of the whole time at whose end each part stops.
ENDS = {"correctness": 0.4, "weights": 0.5, "speed": 0.75, "memory": 0.95, "fault": 1.0}


class OutOfTime(Exception):
    """The time of a part is over."""


class Deadline:
    """A point in time. `clock` returns seconds; tests replace it."""

    def __init__(self, seconds, clock=time.monotonic):
        self.clock = clock
        self.end = clock() + seconds

    def remaining(self, most=None):
        """Seconds that are left, `most` at most.

        Raises OutOfTime if none are.
        """
        left = self.end - self.clock()
        if left <= 0:
            raise OutOfTime("the time of this part is over; --minutes gives all parts more")
        return left if most is None else min(left, most)

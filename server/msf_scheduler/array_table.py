"""Growable struct of arrays: entries are numbers, their fields are arrays."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

INITIAL_CAPACITY = 64

Int8s = NDArray[np.int8]
Int32s = NDArray[np.int32]
Floats = NDArray[np.float64]


class ArrayTable:
    """Table whose columns are the arrays in its attributes; a number is taken again once it is free.

    The last axis of each column counts the entries. Free entries have the values of their columns' start; all in use
    are below `end`, and the one at `end - 1` is.
    """

    def __init__(self, **columns: tuple[np.dtype[Any] | type, float, tuple[int, ...]]) -> None:
        """`columns`: data type, value of free entries, and leading shape of each."""
        self.end = 0
        self._columns = columns
        self._free = list(range(INITIAL_CAPACITY))
        self._is_used = [False] * INITIAL_CAPACITY
        for name, (dtype, value, shape) in columns.items():
            setattr(self, name, np.full((*shape, INITIAL_CAPACITY), value, dtype))

    def allocate(self) -> int:
        """Return the lowest free number."""
        if not self._free:
            self._grow()
        number = heapq.heappop(self._free)
        self._is_used[number] = True
        self.end = max(self.end, number + 1)
        return number

    def release(self, number: int) -> None:
        """Free a number and clear its entry."""
        for name, (_, value, _) in self._columns.items():
            getattr(self, name)[..., number] = value
        heapq.heappush(self._free, number)
        self._is_used[number] = False
        while self.end and not self._is_used[self.end - 1]:
            self.end -= 1

    def _grow(self) -> None:
        capacity = len(self._is_used)
        self._free = list(range(capacity, 2 * capacity))
        self._is_used += [False] * capacity
        for name, (dtype, value, shape) in self._columns.items():
            setattr(self, name, np.concatenate([getattr(self, name), np.full((*shape, capacity), value, dtype)], -1))

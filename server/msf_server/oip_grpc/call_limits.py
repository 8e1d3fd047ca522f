"""Limits on what one address, and all addresses together, hold of the gRPC port at a time.

`middleware/caller_limits.py` cannot count it: to the application, a call's answer is read as soon as it is written.
"""

from __future__ import annotations

from collections import Counter

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import ApiError
from msf_server.middleware.caller_limits import MAX_UNREAD_BYTES, MAX_UNREAD_BYTES_OF_CALLER

MAX_CALLS = 2048  # under way in this process
MAX_CALLS_OF_ADDRESS = MAX_CALLS // 2
RETRY_AFTER_S = 1.0

_ALL = "all"


class CallLimits:
    """Counts of calls and of bytes that have not been read, by address."""

    def __init__(self) -> None:
        self.num_calls: Counter[str] = Counter()
        self.num_unread_bytes: Counter[str] = Counter()

    def open(self, address: str) -> Call:
        """Count a call until its `end`. Raises ApiError."""
        if self.num_calls[address] >= MAX_CALLS_OF_ADDRESS:
            raise _refusal(f"Too many calls of this address: {MAX_CALLS_OF_ADDRESS} at once are allowed.")
        self.num_calls[address] += 1
        return Call(self, address)


class Call:
    """One call's share of the limits."""

    def __init__(self, limits: CallLimits, address: str) -> None:
        self._limits = limits
        self._address = address
        self._num_unread_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """Count a part of the answer until it is read. Raises ApiError, and counts nothing."""
        unread = self._limits.num_unread_bytes
        for name, limit in ((self._address, MAX_UNREAD_BYTES_OF_CALLER), (_ALL, MAX_UNREAD_BYTES)):
            if unread[name] + num_bytes > max(limit, num_bytes):  # an answer of any size may be the only one
                raise _refusal(f"Too many bytes of answers are not read: {unread[name]}. Allowed: {limit}.")
        self._count(num_bytes)

    def release(self, num_bytes: int) -> None:
        """Count a part of the answer no longer: it was read."""
        self._count(-num_bytes)

    def end(self) -> None:
        """Give back what the call still holds."""
        self._count(-self._num_unread_bytes)
        self._limits.num_calls -= Counter([self._address])

    def _count(self, num_bytes: int) -> None:
        self._num_unread_bytes += num_bytes
        unread = self._limits.num_unread_bytes
        for name in (self._address, _ALL):
            unread[name] += num_bytes
            if not unread[name]:
                del unread[name]


def _refusal(message: str) -> ApiError:
    return ApiError(message, code=ErrorCode.RATE_LIMIT_EXCEEDED, retry_after_s=RETRY_AFTER_S)

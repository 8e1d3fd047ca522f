"""Limit on the requests of one address, counted in this process."""

from __future__ import annotations

import time

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import ApiError

MINUTE_S = 60.0
MAX_ADDRESSES = 10_000  # remembered; beyond, the one that was seen least recently is forgotten


class AddressLimit:
    """A bucket of a minute's requests for each address, as the time at which it will be full again (GCRA)."""

    def __init__(self, subject: str, per_minute: int) -> None:
        """`subject` says in a refusal which requests are limited."""
        self._subject = subject
        self._per_minute = per_minute
        self._full_at: dict[str, float] = {}  # by when the address was last seen

    def charge(self, address: str) -> None:
        """Count a request, or raise ApiError, which counts nothing."""
        now, interval_s = time.monotonic(), MINUTE_S / self._per_minute
        full_at = max(self._full_at.pop(address, now), now)
        wait_s = full_at + interval_s - MINUTE_S - now
        self._full_at[address] = full_at if wait_s > 0 else full_at + interval_s
        if len(self._full_at) > MAX_ADDRESSES:
            del self._full_at[next(iter(self._full_at))]
        if wait_s > 0:
            raise ApiError(
                f"Too many {self._subject} from this address. Allowed: {self._per_minute} a minute.",
                code=ErrorCode.RATE_LIMIT_EXCEEDED,
                retry_after_s=wait_s,
            )

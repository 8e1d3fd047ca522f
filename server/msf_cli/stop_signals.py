"""Signals that stop a service: the first lets it drain, a second one ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def handle_stop_signals(drain: Callable[[], None], end: Callable[[int], None]) -> None:
    """Call `drain` at the first SIGINT, SIGTERM or SIGHUP, and `end` with the number of each later SIGINT or SIGTERM.

    SIGHUP comes twice when a terminal closes, and stays ignored under nohup.
    """
    is_draining = False

    def handle(number: int) -> None:
        nonlocal is_draining
        if not is_draining:
            is_draining = True
            drain()
        elif number != signal.SIGHUP:
            end(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, handle, number)

"""Redis client that sends the commands of concurrent tasks together, which takes a fraction of the time."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

COMMAND_TIMEOUT_S = 10.0  # including the wait for a free connection


class PipeliningRedis(Redis):
    """Adds `enqueue`, for commands that do not block, to a client that has a connection for each command."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connection: Connection | None = None
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    def enqueue(self, *command: str | bytes | int | float) -> asyncio.Future[Any]:
        """Return a future of the command's reply, as `execute_command` shapes it.

        Commands are executed in order. They wait while others are under way, then are sent all at once; after
        COMMAND_TIMEOUT_S, all of them fail with TimeoutError.
        """
        reply = asyncio.get_running_loop().create_future()
        self._waiting.append((command, reply))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_waiting())
        return reply

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    await self._send(batch)
            except Exception as error:
                if isinstance(error, TimeoutError):  # those that waited behind the batch have waited long enough
                    batch, self._waiting = batch + self._waiting, []
                for _, reply in batch:
                    if not reply.done():
                        reply.set_exception(error)
        self._sending = None

    async def _send(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        if self._connection is None:
            self._connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        else:
            await self.connection_pool.ensure_connection(self._connection)
        connection = self._connection
        try:
            packed = chain.from_iterable(connection.pack_command(*command) for command, _ in batch)
            await connection.send_packed_command(b"".join(packed), check_health=False)
            for command, reply in batch:
                try:
                    value = await self.parse_response(connection, command[0])
                except ResponseError as error:
                    if not reply.done():
                        reply.set_exception(error)
                else:
                    if not reply.done():
                        reply.set_result(value)
        except BaseException:
            await connection.disconnect(nowait=True)  # its next reply would answer another command
            raise

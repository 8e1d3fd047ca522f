"""Signatures of addresses that stand for leave to read what is there."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call

SECRET_BYTES = 32


class UrlSigner:
    """HMAC-SHA256 under a secret that the servers of one Redis share. Methods raise QueueUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._secret = b""

    async def sign(self, path: str, expires: int) -> str:
        """For `path` until `expires` (Unix seconds), in hexadecimal."""
        if not self._secret:
            await call(self._redis, "SET", keys.URL_SECRET, secrets.token_bytes(SECRET_BYTES), "NX")
            self._secret = await call(self._redis, "GET", keys.URL_SECRET)
        return hmac.digest(self._secret, f"{path} {expires}".encode(), hashlib.sha256).hex()

    async def is_signed(self, path: str, expires: int, signature: str) -> bool:
        return hmac.compare_digest((await self.sign(path, expires)).encode(), signature.encode())

"""Signed URLs of images: whoever has one may read the image until it expires."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from fastapi import Request

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.jobs import JobRecord

FILES = "/v1/files"
SECRET_BYTES = 32


class UrlSigner:
    """HMAC-SHA256 with a secret that all servers of one Redis share. Methods raise QueueUnavailable."""

    def __init__(self, redis: RedisClient, lifetime_s: float) -> None:
        self._redis = redis
        self._lifetime_s = lifetime_s
        self._secret = b""

    async def image_urls(self, job: JobRecord, request: Request) -> list[str]:
        """Return one URL for each image of a job that has succeeded, valid for as long as its result is kept.

        They begin with the URL of this service as the caller of `request` sees it.
        """
        base_url = str(request.base_url).rstrip("/")
        expires = int((job.finished_at or 0) + self._lifetime_s)
        paths = [f"{FILES}/{job.id}/{index}.{job.spec.output_format}" for index in job.spec.indices]
        return [
            f"{base_url}{path}?expires={expires}&signature={await self._signature(path, expires)}" for path in paths
        ]

    async def is_signed(self, path: str, expires: int, signature: str) -> bool:
        """Return whether this service signed `path` until `expires` (Unix seconds)."""
        return hmac.compare_digest((await self._signature(path, expires)).encode(), signature.encode())

    async def _signature(self, path: str, expires: int) -> str:
        if not self._secret:
            await call(self._redis, "SET", keys.URL_SECRET, secrets.token_bytes(SECRET_BYTES), "NX")
            self._secret = await call(self._redis, "GET", keys.URL_SECRET)
        return hmac.digest(self._secret, f"{path} {expires}".encode(), hashlib.sha256).hex()

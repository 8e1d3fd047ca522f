"""Signed URLs of images: whoever has one may read the image until it expires."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from fastapi import Request

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient
from msf_scheduler.jobs import JobRecord
from msf_scheduler.scripts import Script

FILES = "/v1/files"
SECRET_BYTES = 32


class UrlSigner:
    """HMAC-SHA256 with a secret that all servers of one Redis share. Methods raise QueueUnavailable.

    The secret is read each time: a server that kept it would disagree with the others once Redis has lost it.
    """

    def __init__(self, redis: RedisClient, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._get_or_set = Script(redis, "get_or_set")
        self._clock = Script(redis, "now")

    async def image_urls(self, job: JobRecord, request: Request) -> list[str]:
        """Return one URL for each image of a job that has succeeded, valid for as long as its result is kept.

        They begin with the URL of this service as the caller of `request` sees it.
        """
        base_url = str(request.base_url).rstrip("/")
        expires = int((job.finished_at or 0) + self._lifetime_s)
        secret = await self._secret()
        paths = [image_path(job.id, f"{index}.{job.spec.output_format}") for index in job.spec.indices]
        return [f"{base_url}{path}?expires={expires}&signature={_sign(secret, path, expires)}" for path in paths]

    async def is_signed(self, path: str, expires: int, signature: str) -> bool:
        """Return whether this service signed `path` until `expires` (Unix seconds)."""
        return hmac.compare_digest(_sign(await self._secret(), path, expires).encode(), signature.encode())

    async def lifetime_s(self, expires: int) -> int:
        """Return the seconds until `expires` by Redis's clock, which set it."""
        _, redis_time = await self._clock({"clock": keys.CLOCK})
        return expires - int(float(redis_time))

    async def _secret(self) -> bytes:
        """Return the shared secret, which the first caller draws."""
        return bytes(await self._get_or_set({"name": keys.URL_SECRET}, secrets.token_bytes(SECRET_BYTES)))


def image_path(job_id: str, name: str) -> str:
    """Return the path of image `name` of a job; a route verifies the path of the parameters that it serves."""
    return f"{FILES}/{job_id}/{name}"


def _sign(secret: bytes, path: str, expires: int) -> str:
    return hmac.digest(secret, f"{path} {expires}".encode(), hashlib.sha256).hex()

"""Answers with images, written without holding the event loop or Python's global lock for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from msf_scheduler.jobs import JobRecord
from msf_server.schemas.images import ImagesResponse, images_of
from msf_server.schemas.jobs import JobObject

T = TypeVar("T")

LARGE_BYTES = 256 * 1024  # of files: more are encoded in a thread, for which a small answer would only wait
_EMPTY = b'"data":[]'  # occurs once: in strings, quotes are escaped


async def write_answer(
    answer: ImagesResponse | JobObject, job: JobRecord, files: Sequence[bytes], urls: Sequence[str]
) -> bytes:
    """Return the JSON of `answer`, whose list of images is empty, with those of `job`."""
    return await off_loop_if_large(files, lambda: _write(answer, job, files, urls))


async def off_loop_if_large(files: Sequence[bytes], work: Callable[[], T]) -> T:
    """Return what `work`, which encodes `files`, returns; call it in a thread if they are large."""
    return await asyncio.to_thread(work) if sum(map(len, files)) > LARGE_BYTES else work()


def _write(answer: ImagesResponse | JobObject, job: JobRecord, files: Sequence[bytes], urls: Sequence[str]) -> bytes:
    """Write one image after the other: of all in one call, it would hold Python's global lock too long."""
    data = b",".join(image.model_dump_json().encode() for image in images_of(job, files, urls))
    return answer.model_dump_json().encode().replace(_EMPTY, _EMPTY[:-1] + data + b"]", 1)

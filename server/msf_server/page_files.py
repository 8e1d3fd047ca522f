"""The page's files, served from memory: compressed once, and cached by browsers until a file changes."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/page/"

_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    compressed: bytes | None
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> _File:
        media_type = _MEDIA_TYPES[Path(name).suffix]
        compressed = None if media_type == "image/webp" else gzip.compress(content, mtime=0)
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        return cls(content, compressed, media_type, etag)

    def response(self, request_headers: Headers, headers: dict[str, str]) -> Response:
        """Answer with the file, or 304 to a client that has it."""
        headers = {**headers, "ETag": self.etag, "Vary": "Accept-Encoding"}
        if self.etag in request_headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if self.compressed is not None and "gzip" in request_headers.get("accept-encoding", ""):
            return Response(
                self.compressed, headers={**headers, "Content-Encoding": "gzip"}, media_type=self.media_type
            )
        return Response(self.content, headers=headers, media_type=self.media_type)


class PageFiles:
    """ASGI app for the files of a folder.

    The index refers to the others by paths with a digest of all files: `/page/DIGEST/app.js` never changes, so
    browsers keep it for a year. Paths without the digest, or with another release's, are revalidated at each use.
    It also names every module, so that browsers request them at once instead of import by import.
    """

    def __init__(self, folder: Path) -> None:
        contents = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        everything = b"".join(name.encode() + contents[name] for name in sorted(contents))
        self._digest = hashlib.sha256(everything).hexdigest()[:12]
        modules = "".join(
            f'  <link rel="modulepreload" href="{PREFIX}{name}">\n' for name in sorted(contents) if name.endswith(".js")
        )
        index = contents.pop("index.html").replace(b"</head>", f"{modules}</head>".encode())
        index = index.replace(PREFIX.encode(), f"{PREFIX}{self._digest}/".encode())
        self._index = _File.of("index.html", index)
        self._files = {name: _File.of(name, content) for name, content in contents.items()}

    def index(self, request_headers: Headers, headers: dict[str, str]) -> Response:
        """Answer with the page itself."""
        return self._index.response(request_headers, {**headers, "Cache-Control": _REVALIDATE})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> ASGIApp:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405)
        name = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        release, _, rest = name.partition("/")
        file, cache = self._files.get(name), _REVALIDATE
        if file is None:
            file, cache = self._files.get(rest), _FOREVER if release == self._digest else _REVALIDATE
        if file is None:
            raise HTTPException(404)
        return file.response(Headers(scope=scope), {"Cache-Control": cache})

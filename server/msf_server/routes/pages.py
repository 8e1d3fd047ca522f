"""The web page: static files, no build step, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parents[1] / "page"
_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
DOCS_ASSETS = "/static-offline-docs"

router = APIRouter(include_in_schema=False)
assets = StaticFiles(directory=_FOLDER)


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> FileResponse:
    return FileResponse(
        _FOLDER / "index.html", headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    )


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI: its one inline script is named by its hash, and it cannot do without inline styles."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{request.app.title}: the API",
        swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
        swagger_favicon_url="/page/icon.svg",
    )
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
    policy = f"{_POLICY}; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'"
    page.headers["Content-Security-Policy"] = policy
    return page

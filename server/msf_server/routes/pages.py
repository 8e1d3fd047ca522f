"""The web page and `/docs`: static files of this package and of Swagger UI, nothing from other origins."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from msf_server.middleware.auth import DOCS_ASSETS
from msf_server.page_files import PageFiles

# The page's images are blobs of its own. On a busy machine, Chromium 156 checks some of them as connections too.
_POLICY = (
    "default-src 'self'; connect-src 'self' blob:; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)
page_files = PageFiles(Path(__file__).parents[1] / "page")
docs_files = StaticFiles(packages=[("fastapi_offline", "static")])  # Swagger UI; the package is used for its files only


@router.get("/")
async def page(request: Request) -> Response:
    """Serve the web page."""
    return page_files.index(request.headers, {"Content-Security-Policy": _POLICY})


@router.get("/openapi.json")
async def description(request: Request) -> Response:
    """Serve the description of the API."""
    return Response(request.app.openapi_json(), media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Serve Swagger UI under a policy that names its one inline script by hash and allows its inline styles."""
    html = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{request.app.title}: API",
        swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
        swagger_favicon_url="/page/icon.svg",
    )
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(html.body), re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
    html.headers["Content-Security-Policy"] = f"{_POLICY}; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'"
    return html

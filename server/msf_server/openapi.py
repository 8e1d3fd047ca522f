"""Parts of the OpenAPI document that FastAPI cannot derive from the routes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import models_json_schema

from msf_server.errors import ErrorResponse
from msf_server.schemas.images import CompletedEvent, PartialImageEvent
from msf_server.schemas.jobs import JobObject, PreviewEvent, ProgressEvent, QueuedEvent
from msf_server.webhook_delivery import WebhookEvent

Document = dict[str, Any]

DESCRIPTION = "Images by class from two-stage latent diffusion models, in the shapes of OpenAI's image API."
LICENSE = {"name": "Apache 2.0", "identifier": "Apache-2.0"}
SERVERS: list[Document] = [{"url": "/", "description": "The server that this document comes from."}]
TAGS: list[Document] = [
    {"name": name, "description": description}
    for name, description in {
        "images": "Images in the answer to one request, as with OpenAI's image API.",
        "jobs": "The same work, asynchronously: state, events, results and webhooks.",
        "models": "What can be requested: classes, limits and defaults of each model.",
        "usage": "Use and limits of API keys.",
        "open inference protocol": "Version 2 of the protocol with Triton's extensions, for `tritonclient` and KServe.",
        "health": "Probes, metrics and load.",
    }.items()
]

# Data of the server-sent events of a stream, by the name of their schema.
_EVENTS = {
    "ImageStreamEvent": (PartialImageEvent, CompletedEvent, ErrorResponse),
    "JobEvent": (QueuedEvent, ProgressEvent, PreviewEvent, JobObject, ErrorResponse),
}
_STREAM = "text/event-stream"

_WEBHOOK_HEADERS = {
    "webhook-id": "Equal in all attempts of one message.",
    "webhook-timestamp": "Unix seconds of the attempt.",
    "webhook-signature": "`v1,` and the signature; any Standard Webhooks library verifies it.",
}
_WEBHOOK: Document = {
    "operationId": "onJobEnded",
    "tags": ["jobs"],
    "summary": "A job with a webhook_url has ended",
    "description": "Sent to `webhook_url` at least once, as Standard Webhooks describe it.",
    "parameters": [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": description}
        for name, description in _WEBHOOK_HEADERS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{WebhookEvent.__name__}"}}},
    },
    "responses": {
        "2XX": {"description": "The message is delivered."},
        "4XX": {"description": "As any other answer: it is sent again later, for up to two days."},
    },
}


def stream_of(name: str) -> Document:
    """Return the content of a stream whose events have the data of schema `name`, as OpenAI's document describes it."""
    return {_STREAM: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def complete(document: Document, *, requires_keys: bool) -> None:
    """Add webhooks and the schemas of events; declare API keys on exactly the operations that require one here."""
    schemas = document["components"]["schemas"]
    document["webhooks"] = {"job-ended": {"post": dict(_WEBHOOK)}}
    models = {WebhookEvent, *(model for members in _EVENTS.values() for model in members)}
    _, events = models_json_schema(
        [(model, "serialization") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    for name, schema in events["$defs"].items():
        schemas.setdefault(name, schema)
    for name, members in _EVENTS.items():
        schemas[name] = {"anyOf": [{"$ref": f"#/components/schemas/{model.__name__}"} for model in members]}
    for operation in _operations(document):
        if not requires_keys:
            operation.pop("security", None)
        elif "security" not in operation:
            operation["security"] = []
    if not requires_keys:
        document["components"].pop("securitySchemes", None)
        document["security"] = []


def _operations(document: Document) -> Iterator[Document]:
    for path in (*document["paths"].values(), *document["webhooks"].values()):
        yield from path.values()

"""Error codes of the service: stable strings for programs, shared by server, scheduler and workers.

`docs/errors.md` documents each of them with its HTTP status, cause and remedy.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Value of `code` in an error answer and in the `error` of a failed job."""

    # The request is wrong.
    INVALID_VALUE = "invalid_value"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    INVALID_JSON = "invalid_json"
    UNKNOWN_CLASS = "unknown_class"
    STRICT_UNAVAILABLE = "strict_unavailable"
    WEBHOOKS_OFF = "webhooks_off"
    LOAD_FAILED = "load_failed"
    INVALID_API_KEY = "invalid_api_key"
    MISSING_SCOPE = "missing_scope"
    INVALID_SIGNATURE = "invalid_signature"
    URL_EXPIRED = "url_expired"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_NOT_LOADED = "model_not_loaded"
    JOB_NOT_FOUND = "job_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_SLOW = "body_too_slow"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    SUPERSEDED = "superseded"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    HEADERS_TOO_LARGE = "headers_too_large"

    # Nothing was admitted: the service, or this caller's share of it, is full.
    QUEUE_FULL = "queue_full"
    STORAGE_FULL = "storage_full"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    QUOTA_EXCEEDED = "quota_exceeded"

    # The service cannot work now.
    DRAINING = "draining"
    NO_WORKER = "no_worker"
    QUEUE_UNAVAILABLE = "queue_unavailable"
    TIMEOUT = "timeout"
    INTERNAL_ERROR = "internal_error"
    RESULT_GONE = "result_gone"

    # An accepted job did not succeed.
    CANCELLED = "cancelled"
    CLIENT_GONE = "client_gone"
    DEADLINE = "deadline"
    ENGINE_ERROR = "engine_error"
    NON_FINITE = "non_finite"
    POISONED = "poisoned"
    FINGERPRINT_GONE = "fingerprint_gone"

"""The gRPC service of the Open Inference Protocol: each call is a request to the HTTP application.

So limits, keys, admission, errors, logs and metrics are those of `/v2`. The messages come with Triton's client.
A method for each call of the protocol makes the file long.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
from fastapi import FastAPI
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2

from msf_scheduler.error_codes import ErrorCode
from msf_server.callers import network_of
from msf_server.errors import ApiError, InvalidRequest, quoted, translate
from msf_server.oip.routes import PREVIEWS, OnPreview
from msf_server.oip_grpc.asgi_call import Answer, Header, Peer, call_app
from msf_server.oip_grpc.call_limits import Call, CallLimits
from msf_server.oip_grpc.conversion import (
    FINAL_RESPONSE,
    infer_body,
    infer_response,
    preview_response,
    repository_parameters,
    set_parameter,
)

logger = logging.getLogger(__name__)

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
MAX_STREAM_REQUESTS = 64  # of one stream that are answered at once; further ones are read later
_FORWARDED = frozenset({"authorization", "idempotency-key", "traceparent", "tracestate", "x-request-id"})
_RETURNED = ("retry-after", "x-request-id")
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
Context = Any  # grpc.aio.ServicerContext


class _Refused(Exception):
    """An error answer of the application."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(json.loads(answer.body)["error"])
        self.answer = answer


@dataclass(frozen=True)
class _Refusal:
    """Status of a call that has no result."""

    code: Any
    message: str
    metadata: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, error: Exception) -> _Refusal:
        """Return the end of a call that raised `error`; an unexpected one reveals no internals."""
        match error:
            case _Refused(answer=answer):
                metadata = tuple((name, answer.headers[name]) for name in _RETURNED if name in answer.headers)
                return cls(_code_of(answer.status), str(error), metadata)
            case ApiError():
                headers = {name.lower(): value for name, value in (error.headers or {}).items()}
                metadata = tuple((name, headers[name]) for name in _RETURNED if name in headers)
                return cls(_code_of(error.status_code), str(error.detail), metadata)
        logger.exception("a gRPC call failed", exc_info=error)
        return cls(grpc.StatusCode.INTERNAL, str(translate(error).detail))


class InferenceService:
    """Handlers of the protocol's calls, by their names; those of other extensions are unimplemented.

    A message must arrive within `message_timeout_s` of the start of its call.
    """

    def __init__(self, app: FastAPI, port: int, message_timeout_s: float) -> None:
        self._app = app
        self._port = port
        self._message_timeout_s = message_timeout_s
        self._limits = CallLimits()
        self._calls: set[asyncio.Task[Answer]] = set()

    def handler(self) -> Any:
        """Return the handler to add to a server."""
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {
                name: self._rpc(name, method)
                for name in SERVICE.methods_by_name
                if (method := getattr(self, name, None)) is not None
            },
        )

    async def ServerLive(self, request: Any, context: Context) -> Any:
        answer = await self._call(context, "GET", "/v2/health/live")
        return service_pb2.ServerLiveResponse(live=answer.status == 200)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        answer = await self._call(context, "GET", "/v2/health/ready")
        return service_pb2.ServerReadyResponse(ready=answer.status == 200)

    async def ModelReady(self, request: Any, context: Context) -> Any:
        answer = await self._call(context, "GET", f"{_model_path(request.name, request.version)}/ready")
        if answer.status not in (200, 404, 503):
            raise _Refused(answer)
        return service_pb2.ModelReadyResponse(ready=answer.status == 200)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        return ParseDict(await self._read(context, "/v2"), service_pb2.ServerMetadataResponse())

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        fields = await self._read(context, _model_path(request.name, request.version))
        return ParseDict(fields, service_pb2.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        fields = await self._read(context, f"{_model_path(request.name, request.version)}/config")
        return ParseDict({"config": fields}, service_pb2.ModelConfigResponse(), ignore_unknown_fields=True)

    async def ModelStatistics(self, request: Any, context: Context) -> Any:
        path = _model_path(request.name, request.version) if request.name else "/v2/models"
        return ParseDict(await self._read(context, f"{path}/stats"), service_pb2.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:
        entries = json.loads((await self._post(context, "/v2/repository/index", {"ready": request.ready})).body)
        return ParseDict({"models": entries}, service_pb2.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:
        path = _checked_path("/v2/repository/models", request.model_name, "load")
        await self._post(context, path, {"parameters": repository_parameters(request)})
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:
        path = _checked_path("/v2/repository/models", request.model_name, "unload")
        await self._post(context, path, {"parameters": repository_parameters(request)})
        return service_pb2.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: Context, on_preview: OnPreview | None = None) -> Any:
        body, headers = infer_body(request, context.time_remaining())
        path = f"{_model_path(request.model_name, request.model_version)}/infer"
        extensions = {PREVIEWS: on_preview} if on_preview else {}
        return infer_response(_checked(await self._call(context, "POST", path, headers, body, extensions)))

    async def ModelStreamInfer(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """Answer each request of a stream with its previews, and its images once done; a failure harms no other."""
        try:
            call = self._open(context)
        except ApiError as error:
            await _abort(context, error)
            return
        responses: asyncio.Queue[Any] = asyncio.Queue()
        capacity = asyncio.Semaphore(MAX_STREAM_REQUESTS)  # until the last response is read

        def send(request: Any, response: Any, *, is_last: bool = False) -> None:
            try:
                call.hold(response.ByteSize())
            except ApiError as error:
                if not is_last:  # a preview
                    return
                response = _failure(request, error)
                call.hold(response.ByteSize())
            responses.put_nowait((response, is_last))

        async def answer(message: bytes) -> None:
            request = service_pb2.ModelInferRequest()

            def show(row: int, number: int, file: bytes) -> None:
                preview = preview_response(request, row, number, file)
                send(request, service_pb2.ModelStreamInferResponse(infer_response=preview))

            try:
                _parse(request, message)
                response = await self.ModelInfer(request, context, show)
                result = service_pb2.ModelStreamInferResponse(infer_response=response)
                set_parameter(result.infer_response, FINAL_RESPONSE, True)
            except Exception as error:
                result = _failure(request, error)
            send(request, result, is_last=True)

        async def read() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    async for message in messages:
                        await capacity.acquire()
                        group.create_task(answer(message))
            finally:
                responses.put_nowait((None, True))

        reading = asyncio.create_task(read())
        try:
            while True:
                response, is_last = await responses.get()
                if response is None:
                    return
                yield response
                call.release(response.ByteSize())
                if is_last:
                    capacity.release()
        finally:
            reading.cancel()  # which cancels what it reads for

    async def _read(self, context: Context, path: str) -> Any:
        return json.loads(_checked(await self._call(context, "GET", path)).body)

    async def _post(self, context: Context, path: str, body: dict[str, Any]) -> Answer:
        headers = [(b"content-type", b"application/json")]
        return _checked(await self._call(context, "POST", path, headers, json.dumps(body).encode()))

    async def _call(
        self,
        context: Context,
        method: str,
        path: str,
        headers: Sequence[Header] = (),
        body: bytes = b"",
        extensions: Mapping[str, Any] | None = None,
    ) -> Answer:
        metadata = [
            (name.encode(), value.encode()) for name, value in context.invocation_metadata() or () if name in _FORWARDED
        ]
        peer = _peer(context.peer(), self._port)
        call = asyncio.create_task(call_app(self._app, peer, method, path, [*metadata, *headers], body, extensions))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await call

    def _open(self, context: Context) -> Call:
        """Count a call until it ends. Raises ApiError."""
        peer = _peer(context.peer(), self._port)
        call = self._limits.open(network_of({"client": (peer.host, peer.port)}))
        context.add_done_callback(lambda _: call.end())
        return call

    def _rpc(self, name: str, method: Callable[..., Any]) -> Any:
        """Return the handler of a call, with the message types of the protocol."""
        descriptor = SERVICE.methods_by_name[name]
        serialize = GetMessageClass(descriptor.output_type).SerializeToString
        if descriptor.client_streaming:
            return grpc.stream_stream_rpc_method_handler(method, response_serializer=serialize)
        answer = self._unary(method, GetMessageClass(descriptor.input_type))
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=serialize)

    def _unary(self, method: Callable[..., Awaitable[Any]], request_type: Callable[[], Any]) -> Callable[..., Any]:
        """Return the handler of a call with one message, which reads it itself: gRPC would wait for it indefinitely."""

        async def answer(messages: AsyncIterator[bytes], context: Context) -> Any:
            try:
                call = self._open(context)
                request = request_type()
                _parse(request, await self._first(messages))
                response = await method(request, context)
                call.hold(response.ByteSize())
            except Exception as error:
                await _abort(context, error)
                return None
            return response

        return answer

    async def _first(self, messages: AsyncIterator[bytes]) -> bytes:
        try:
            async with asyncio.timeout(self._message_timeout_s):
                async for message in messages:
                    return message
        except TimeoutError as error:
            allowed = f"{self._message_timeout_s:g} seconds"
            raise InvalidRequest(
                f"The message did not arrive in time. Allowed: {allowed}.", code=ErrorCode.BODY_TOO_SLOW
            ) from error
        raise InvalidRequest("The call has no message. Allowed: one.")

    async def finish(self, timeout_s: float) -> None:
        """Wait for the calls that are being answered."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_s)


def _parse(request: Any, message: bytes) -> None:
    """Fill a request from the bytes of its message. Raises InvalidRequest."""
    try:
        request.ParseFromString(message)
    except DecodeError as error:
        raise InvalidRequest(f"The message is no {type(request).DESCRIPTOR.name}.") from error


def _failure(request: Any, error: Exception) -> Any:
    """Return the last response of a stream to a request that has failed."""
    result = service_pb2.ModelStreamInferResponse(error_message=_Refusal.of(error).message)
    result.infer_response.id, result.infer_response.model_name = request.id, request.model_name
    set_parameter(result.infer_response, FINAL_RESPONSE, True)
    return result


async def _abort(context: Context, error: Exception) -> None:
    refusal = _Refusal.of(error)
    await context.abort(refusal.code, refusal.message, refusal.metadata)


def _code_of(status: int) -> Any:
    other = grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL
    return _CODES.get(status, other)


def _checked(answer: Answer) -> Answer:
    if answer.status != 200:
        raise _Refused(answer)
    return answer


def _model_path(name: str, version: str) -> str:
    return _checked_path("/v2/models", name, *(("versions", version) if version else ()))


def _checked_path(*parts: str) -> str:
    """Join a path's parts. Raises InvalidRequest if a model's name or version would lead elsewhere."""
    for part in parts[1:]:
        if part in ("", "stats") or "/" in part:  # /v2/models/stats has the statistics of all models
            allowed = "one without slashes, other than stats"
            raise InvalidRequest(f"Invalid model name or version: {quoted(part)}. Allowed: {allowed}.")
    return "/".join(parts)


def _peer(address: str, server_port: int) -> Peer:
    """Parse gRPC's name of a client, such as ipv4:127.0.0.1:4711 or ipv6:%5B::1%5D:4711."""
    _, _, rest = unquote(address).partition(":")
    host, _, port = rest.rpartition(":")
    return Peer(host.strip("[]"), int(port) if port.isdecimal() else 0, server_port)

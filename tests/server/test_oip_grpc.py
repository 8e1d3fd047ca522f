"""The Open Inference Protocol over gRPC, with Triton's own client: the semantics are those of HTTP."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra grpc")

import grpc
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from bench.local_stack import free_port
from msf_scheduler.jobs import Preview, Priority
from msf_scheduler.model_control import ModelControl
from msf_server.api_keys import digest, new_key
from msf_server.oip_grpc import call_limits, service
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving, until
from tests.server.fake_worker import FASHION, LABELS, FakeWorker, draw
from tests.server.test_model_control import Reports
from tests.server.test_oip import DTYPES, drawn, image_request

Ask = Callable[..., Any]


@pytest.fixture
def grpc_settings(settings: ServerSettings) -> ServerSettings:
    return settings.model_copy(update={"grpc_port": free_port(), "body_timeout_s": 3.0})


@pytest.fixture
async def client(grpc_settings: ServerSettings, worker: FakeWorker) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP client of the server whose gRPC port the tests use."""
    async with serving(grpc_settings) as app, client_of(app) as client:
        yield client


@pytest.fixture
def ask(client: httpx.AsyncClient, grpc_settings: ServerSettings) -> Ask:
    """Call a blocking client method in a thread."""
    return asking(grpc_settings)


def asking(settings: ServerSettings) -> Ask:
    async def ask(method: str, *arguments: Any, **options: Any) -> Any:
        def work() -> Any:
            with triton.InferenceServerClient(f"127.0.0.1:{settings.grpc_port}") as client:
                return getattr(client, method)(*arguments, **options)

        return await asyncio.to_thread(work)

    return ask


@asynccontextmanager
async def channel_to(settings: ServerSettings) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
        yield channel


def tensor(name: str, datatype: str, values: Any) -> triton.InferInput:
    array = np.array(values, dtype=DTYPES[datatype])
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


async def raised_by(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as raised:
        await call
    return raised.value.status(), raised.value.message()


async def test_health_and_metadata(ask: Ask, client: httpx.AsyncClient, worker: FakeWorker) -> None:
    assert await ask("is_server_live")
    assert await ask("is_server_ready")
    for version, is_ready in (("", True), ("1", True), ("2", False)):
        assert await ask("is_model_ready", "fashion", version) == is_ready
    for method, arguments, path in (
        ("get_server_metadata", (), "/v2"),
        ("get_model_metadata", ("fashion",), "/v2/models/fashion"),
        ("get_model_config", ("fashion", "1"), "/v2/models/fashion/config"),
        ("get_inference_statistics", (), "/v2/models/stats"),
        ("get_inference_statistics", ("fashion",), "/v2/models/fashion/stats"),
    ):
        message = await ask(method, *arguments)
        name = json.dumps((await client.get(path)).json()).split('"name": ')[1].split(",")[0].strip('"')
        assert f'name: "{name}"' in str(message)
    config = (await ask("get_model_config", "fashion")).config
    assert (config.max_batch_size, [each.name for each in config.input][:2]) == (64, ["label", "seed"])
    assert tuple(json.loads(config.parameters["labels"].string_value)) == LABELS
    [output] = (await ask("get_model_metadata", "fashion")).outputs
    assert (output.name, output.datatype, list(output.shape)) == ("images", "UINT8", [-1, 32, 32, 3])
    await worker.registry.unregister(worker.info.id)
    await until(lambda: ask("is_server_ready"), False)


async def test_rows_become_the_images_of_an_http_request(ask: Ask, worker: FakeWorker) -> None:
    result = await ask(
        "infer",
        "fashion",
        [
            tensor("label", "BYTES", ["dress", "Dress", "7"]),
            tensor("seed", "INT64", [41]),
            tensor("guidance_scale", "FP32", [2.2]),
            tensor("num_steps", "INT32", [[9]]),
        ],
        outputs=[triton.InferRequestedOutput("images")],
        request_id="mine",
        priority=1,
        timeout=7_000_000,
        parameters={"user": "me"},
    )
    expected = [drawn(label, 41, row, 9) for row, label in enumerate([3, 3, 7])]
    np.testing.assert_array_equal(result.as_numpy("images"), expected)
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("mine", "fashion", "1")
    assert answer.parameters["seed"].int64_param == 41
    assert answer.parameters["guidance_scale"].double_param == 2.2
    terms = worker.claimed[-1].job.terms
    assert (terms.priority, terms.user, terms.timeout_s) == (Priority.HIGH, "me", 7.0)


@pytest.mark.parametrize(
    "negative", [tensor("negative_label", "BYTES", ["coat"]), tensor("negative_label", "INT64", [4])]
)
async def test_a_negative_label_is_the_negative_prompt_of_an_image_request(
    ask: Ask, live_url: str, negative: triton.InferInput
) -> None:
    inputs = [tensor("label", "INT32", [8, 8]), tensor("seed", "INT64", [5])]
    result = await ask("infer", "fashion", [*inputs, negative], parameters={"cache": False})
    np.testing.assert_array_equal(result.as_numpy("images"), await image_request(live_url, negative_prompt="coat"))


async def test_elements_may_be_typed_contents(client: httpx.AsyncClient, grpc_settings: ServerSettings) -> None:
    request = service_pb2.ModelInferRequest(model_name="fashion")
    request.inputs.add(name="label", datatype="BYTES", shape=[2]).contents.bytes_contents[:] = [b"dress", b"bag"]
    request.inputs.add(name="seed", datatype="INT64", shape=[1]).contents.int64_contents[:] = [5]
    request.inputs.add(name="guidance_scale", datatype="FP32", shape=[1]).contents.fp32_contents[:] = [2.2]
    async with channel_to(grpc_settings) as channel:
        response = await unary(channel, "ModelInfer", request)
        images = np.frombuffer(response.raw_output_contents[0], np.uint8).reshape(list(response.outputs[0].shape))
        np.testing.assert_array_equal(images, [drawn(3, 5, 0), drawn(8, 5, 1)])
        request.inputs[1].datatype = "INT8"
        request.inputs[1].contents.int_contents[:] = [1000]
        with pytest.raises(grpc.aio.AioRpcError, match="an element is not INT8"):
            await unary(channel, "ModelInfer", request)


async def unary(channel: Any, name: str, request: Any, **options: Any) -> Any:
    descriptor = service.SERVICE.methods_by_name[name]
    response_type = getattr(service_pb2, descriptor.output_type.name)
    call = channel.unary_unary(
        f"/{service.SERVICE.full_name}/{name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response_type.FromString,
    )
    return await call(request, **options)


async def test_results_metrics_and_statistics_are_shared_with_http(ask: Ask, client: httpx.AsyncClient) -> None:
    await ask("infer", "fashion", [tensor("label", "INT32", [8, 8]), tensor("seed", "INT64", [5])])
    answer = (await client.post("/v1/images/generations", json={"prompt": "bag", "n": 2, "seed": 5})).json()
    assert answer["cached"]
    [stats] = (await ask("get_inference_statistics", "fashion", "1")).model_stats
    assert (stats.inference_stats.success.count, stats.inference_count) == (2, 2)
    route = 'msf_requests_total{model="fashion",outcome="succeeded",route="/v2/models/{model}/infer",version="1"} 1.0'
    assert route in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("inputs", "options", "code", "message"),
    [
        ([tensor("label", "INT32", [10])], {}, "INVALID_ARGUMENT", "Invalid label: 10. Allowed: 0 to 9."),
        ([tensor("label", "FP32", [1.0])], {}, "INVALID_ARGUMENT", "Invalid datatype of label"),
        ([tensor("label", "INT32", [1] * 65)], {}, "INVALID_ARGUMENT", "The inputs have 65 rows"),
        ([tensor("label", "INT32", [1])], {"sequence_id": 3}, "INVALID_ARGUMENT", "Unknown parameter"),
        ([tensor("label", "INT32", [1])], {"model_version": "9"}, "NOT_FOUND", "Unknown model"),
        ([tensor("label", "INT32", [1])], {"model_version": "a/b"}, "INVALID_ARGUMENT", "without slashes"),
        ([tensor("label", "INT32", [1])], {"timeout": 1}, "DEADLINE_EXCEEDED", "within 1e-06 s"),
        ([tensor("label", "BYTES", ["x" * 70_000])], {}, "RESOURCE_EXHAUSTED", "The body is too large"),
        ([tensor("label", "BYTES", ["x" * 200_000])], {}, "RESOURCE_EXHAUSTED", "larger than max"),
        (
            [tensor("label", "INT32", [1])],
            {"outputs": [triton.InferRequestedOutput("images", class_count=2)]},
            "INVALID_ARGUMENT",
            "Invalid output",
        ),
    ],
)
async def test_errors_have_the_status_codes_of_grpc(
    ask: Ask, worker: FakeWorker, inputs: list[triton.InferInput], options: dict[str, Any], code: str, message: str
) -> None:
    status, text = await raised_by(ask("infer", "fashion", inputs, **options))
    assert (status, message in text) == (f"StatusCode.{code}", True), text


async def raw_unary(channel: Any, method: str, *messages: bytes, is_over: bool = True) -> Any:
    """Make a call of any number of messages, of any bytes, which the caller may leave open."""
    call = channel.stream_unary(f"/{service.SERVICE.full_name}/{method}")()
    for message in messages:
        await call.write(message)
    if is_over:
        await call.done_writing()
    return await call


@pytest.mark.parametrize(
    ("messages", "is_over", "code"),
    [
        ((b"\xff" * 100,), True, "INVALID_ARGUMENT"),
        ((b"\x0a\xff\xff\xff\xff\x0f",), True, "INVALID_ARGUMENT"),
        ((), True, "INVALID_ARGUMENT"),
        ((), False, "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_message_that_is_none_or_never_comes_is_refused(
    client: httpx.AsyncClient,
    grpc_settings: ServerSettings,
    caplog: pytest.LogCaptureFixture,
    messages: tuple[bytes, ...],
    is_over: bool,
    code: str,
) -> None:
    async with channel_to(grpc_settings) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await raw_unary(channel, "ModelInfer", *messages, is_over=is_over)
    assert raised.value.code().name == code
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_malformed_message_harms_no_other_of_its_stream(
    client: httpx.AsyncClient, grpc_settings: ServerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    request = service_pb2.ModelInferRequest(model_name="fashion", id="mine")
    request.inputs.add(name="label", datatype="INT32", shape=[1]).contents.int_contents[:] = [1]
    async with channel_to(grpc_settings) as channel:
        call = channel.stream_stream(
            f"/{service.SERVICE.full_name}/ModelStreamInfer",
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )()
        await call.write(b"\xff" * 100)
        await call.write(request.SerializeToString())
        await call.done_writing()
        responses = {response.infer_response.id: response.error_message async for response in call}
    assert responses == {"": "The message is no ModelInferRequest.", "mine": ""}
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_model_of_the_name_of_another_path_is_refused(ask: Ask) -> None:
    assert (await raised_by(ask("get_model_metadata", "stats")))[0] == "StatusCode.INVALID_ARGUMENT"


async def test_the_calls_of_one_address_are_limited(
    client: httpx.AsyncClient, grpc_settings: ServerSettings, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_limits, "MAX_CALLS_OF_ADDRESS", 2)
    async with channel_to(grpc_settings) as channel:
        calls = [stream(channel) for _ in range(2)]
        for call in calls:
            await call.write(service_pb2.ModelInferRequest(model_name="hats"))
            assert "hats" in (await call.read()).error_message
        assert (await raised_by(ask("is_server_live")))[0] == "StatusCode.RESOURCE_EXHAUSTED"
        extra = stream(channel)
        assert await extra.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        calls[0].cancel()

        async def is_live() -> bool:
            return bool(await ask("is_server_live"))

        await until(is_live)


async def test_answers_that_are_not_read_are_limited(
    client: httpx.AsyncClient,
    grpc_settings: ServerSettings,
    ask: Ask,
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream whose caller reads nothing is not read either, and no other answer of its address is made."""
    monkeypatch.setattr(service, "MAX_STREAM_REQUESTS", 4)
    options = [("grpc.http2.bdp_probe", 0)]  # the window stays at 64 KiB, less than an answer has
    address, num_requests = f"127.0.0.1:{grpc_settings.grpc_port}", 20
    one = [tensor("label", "INT32", [1])]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = stream(channel)

        async def send() -> None:
            for seed in range(num_requests):
                request = service_pb2.ModelInferRequest(model_name="fashion")
                request.inputs.add(name="label", datatype="INT32", shape=[32]).contents.int_contents[:] = [1] * 32
                request.inputs.add(name="seed", datatype="INT32", shape=[1]).contents.int_contents[:] = [seed]
                await call.write(request)
            await call.done_writing()

        sending = asyncio.create_task(send())
        await until(lambda: len(worker.claimed) >= 4)
        for _ in range(10):
            await ask("infer", "fashion", one)
        assert len(worker.claimed) < 10 + num_requests // 2
        monkeypatch.setattr(call_limits, "MAX_UNREAD_BYTES_OF_CALLER", 1)
        assert (await raised_by(ask("infer", "fashion", one)))[0] == "StatusCode.RESOURCE_EXHAUSTED"
        monkeypatch.undo()
        answers = [await call.read() for _ in range(num_requests)]
        assert not any(answer.error_message for answer in answers)
        assert await call.read() is grpc.aio.EOF
        await sending
    monkeypatch.setattr(call_limits, "MAX_UNREAD_BYTES_OF_CALLER", 1)
    await ask("infer", "fashion", one)  # nothing is held any more


async def test_a_call_that_is_cancelled_cancels_its_job(
    client: httpx.AsyncClient, grpc_settings: ServerSettings, worker: FakeWorker
) -> None:
    worker.holding = True
    request = service_pb2.ModelInferRequest(model_name="fashion")
    request.inputs.add(name="label", datatype="INT32", shape=[1]).contents.int_contents[:] = [1]
    async with channel_to(grpc_settings) as channel:
        asking = asyncio.create_task(unary(channel, "ModelInfer", request))
        await until(lambda: len(worker.claimed), 1)
        asking.cancel()
        await until(lambda: worker.lost, {worker.claimed[0].job.id})
    gone = 'msf_clients_gone_total{model="fashion",version="1"} 1.0'

    async def is_counted() -> bool:
        return gone in (await client.get("/metrics")).text

    await until(is_counted)


async def test_the_deadline_of_a_call_is_that_of_its_job(
    ask: Ask, client: httpx.AsyncClient, grpc_settings: ServerSettings, worker: FakeWorker
) -> None:
    worker.holding = True
    call = ask("infer", "fashion", [tensor("label", "INT32", [1])], client_timeout=1.5)
    assert (await raised_by(call))[0] == "StatusCode.DEADLINE_EXCEEDED"
    [claim] = worker.claimed
    assert claim.job.terms.timeout_s is not None
    assert 0 < claim.job.terms.timeout_s <= 1.5
    await until(lambda: worker.lost, {claim.job.id})


async def test_a_stream_answers_each_request_once_it_is_done(ask: Ask, grpc_settings: ServerSettings) -> None:
    def stream() -> dict[str, Any]:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with triton.InferenceServerClient(f"127.0.0.1:{grpc_settings.grpc_port}") as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for number, label in enumerate(["dress", "no such class", "bag"]):
                inputs = [tensor("label", "BYTES", [label]), tensor("seed", "INT64", [number])]
                client.async_stream_infer("fashion", inputs, request_id=str(number), enable_empty_final_response=True)
            received = [answers.get(timeout=60) for _ in range(3)]
            client.stop_stream()
        return {result.get_response().id: result for result, _ in received if result is not None} | {
            "error": [str(error) for _, error in received if error is not None]
        }

    answers = await asyncio.to_thread(stream)
    assert len(answers["error"]) == 1
    assert 'Unknown class "no such class"' in answers["error"][0]
    for request_id, label in (("0", 3), ("2", 8)):
        np.testing.assert_array_equal(answers[request_id].as_numpy("images"), [drawn(label, int(request_id), 0)])
        assert answers[request_id].get_response().parameters["triton_final_response"].bool_param


async def test_a_stream_shows_previews_before_the_images(
    client: httpx.AsyncClient, grpc_settings: ServerSettings, worker: FakeWorker
) -> None:
    worker.holding = True
    request = service_pb2.ModelInferRequest(model_name="fashion", id="mine")
    request.inputs.add(name="label", datatype="INT32", shape=[3]).contents.int_contents[:] = [1, 2, 2]
    request.inputs.add(name="seed", datatype="INT32", shape=[1]).contents.int_contents[:] = [5]
    request.parameters["partial_images"].int64_param = 1
    async with channel_to(grpc_settings) as channel:
        call = stream(channel)
        await call.write(request)
        await call.done_writing()
        await until(lambda: len(worker.claimed), 2)
        [claim] = [claim for claim in worker.claimed if claim.job.spec.label == 2]
        file = draw(claim.job.spec)[1]
        await worker.leases.publish_preview(claim, 1, Preview(index=2, number=0), file)
        preview = (await call.read()).infer_response
        worker.holding = False
        final = (await call.read()).infer_response
        assert await call.read() is grpc.aio.EOF
    parameters = {name: preview.parameters[name] for name in preview.parameters}
    assert (preview.id, parameters["row"].int64_param, parameters["partial_image_index"].int64_param) == ("mine", 2, 0)
    assert not parameters["triton_final_response"].bool_param
    assert preview.raw_output_contents[0] == drawn(2, 5, 2).tobytes()
    assert final.parameters["triton_final_response"].bool_param
    assert list(final.outputs[0].shape) == [3, 32, 32, 3]


async def test_previews_need_a_stream(ask: Ask, client: httpx.AsyncClient) -> None:
    call = ask("infer", "fashion", [tensor("label", "INT32", [1])], parameters={"partial_images": 1})
    assert "Allowed: in a stream over gRPC" in (await raised_by(call))[1]


def stream(channel: Any) -> Any:
    return channel.stream_stream(
        f"/{service.SERVICE.full_name}/ModelStreamInfer",
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )()


async def test_ending_a_stream_cancels_its_jobs(
    client: httpx.AsyncClient, grpc_settings: ServerSettings, worker: FakeWorker
) -> None:
    worker.holding = True
    request = service_pb2.ModelInferRequest(model_name="fashion")
    request.inputs.add(name="label", datatype="INT32", shape=[2]).contents.int_contents[:] = [1, 2]
    async with channel_to(grpc_settings) as channel:
        call = stream(channel)
        await call.write(request)
        await until(lambda: len(worker.claimed), 2)
        call.cancel()
        await until(lambda: worker.lost, {claim.job.id for claim in worker.claimed})


async def test_the_repository_is_controlled(ask: Ask, client: httpx.AsyncClient, worker: FakeWorker) -> None:
    control: ModelControl = client._transport.app.state.services.model_control  # type: ignore[attr-defined]
    reports = Reports(control, worker)
    reporting = asyncio.create_task(reports.run())
    try:
        [model] = (await ask("get_model_repository_index")).models
        assert (model.name, model.version, model.state) == ("fashion", "1", "READY")
        await ask("unload_model", "fashion")
        assert await reports.wanted() == ()
        assert not await ask("is_model_ready", "fashion")
        await ask("load_model", "fashion", config='{"version_policy": {"specific": {"versions": [1]}}}')
        assert await reports.wanted() == ("1",)
        refused = ask("load_model", "fashion", config="{}", files={"file:1/model": b"content"})
        assert (await raised_by(refused))[0] == "StatusCode.INVALID_ARGUMENT"
        assert (await raised_by(ask("load_model", "hats")))[0] == "StatusCode.NOT_FOUND"
    finally:
        reporting.cancel()


async def test_an_alias_is_a_model_or_a_version(ask: Ask, client: httpx.AsyncClient) -> None:
    await client.put("/v2/repository/aliases/fashion:stable", json={"versions": {"1": 1}})
    for name, version in (("fashion:stable", ""), ("fashion", "stable")):
        result = await ask("infer", name, [tensor("label", "INT32", [1])], model_version=version)
        assert result.get_response().model_version == "1"


async def test_keys_limits_and_the_operations_port_hold(
    grpc_settings: ServerSettings, worker: FakeWorker, tmp_path: Path
) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(
        f'[[keys]]\nname = "team"\nsha256 = "{digest(key)}"\nscopes = ["generate", "admin"]\nsamples_per_day = 2\n'
    )
    settings = grpc_settings.model_copy(update={"api_keys_file": file, "metrics_port": 1})
    ask, headers = asking(settings), {"authorization": f"Bearer {key}"}
    inputs = [tensor("label", "INT32", [1, 2])]
    async with serving(settings):
        assert await ask("is_server_ready")
        status, message = await raised_by(ask("infer", "fashion", inputs))
        assert (status, "Missing API key" in message) == ("StatusCode.UNAUTHENTICATED", True)
        await ask("infer", "fashion", inputs, headers=headers)
        assert worker.claimed[-1].job.terms.tenant == "team"
        assert (await raised_by(ask("infer", "fashion", inputs, headers=headers)))[0] == "StatusCode.RESOURCE_EXHAUSTED"
        assert (await raised_by(ask("unload_model", "fashion", headers=headers)))[0] == "StatusCode.NOT_FOUND"


async def test_other_extensions_are_unimplemented(ask: Ask) -> None:
    assert (await raised_by(ask("get_trace_settings")))[0] == "StatusCode.UNIMPLEMENTED"


async def test_a_draining_server_refuses_and_answers_what_it_has_accepted(
    ask: Ask, client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    worker.holding = True
    accepted = asyncio.create_task(ask("infer", "fashion", [tensor("label", "INT32", [1])]))
    await until(lambda: len(worker.claimed), 1)
    client._transport.app.state.drain.begin()  # type: ignore[attr-defined]
    assert (await raised_by(ask("infer", "fashion", [tensor("label", "INT32", [1])])))[0] == "StatusCode.UNAVAILABLE"
    worker.holding = False
    assert (await accepted).as_numpy("images").shape == (1, 32, 32, 3)
    assert FASHION.name == (await ask("get_model_metadata", "fashion")).name

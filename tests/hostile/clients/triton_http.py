"""Requests of Triton's HTTP client, in all its forms: URL as the only argument."""

import itertools
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton

MODEL = "fashion-mnist"

client = triton.InferenceServerClient(sys.argv[1].removeprefix("http://"), network_timeout=300.0)


def tensor(name: str, values: Any, datatype: str, binary: bool = True) -> Any:
    array = np.array(values, dtype={"BYTES": object, "INT32": np.int32}[datatype])
    column = triton.InferInput(name, list(array.shape), datatype)
    column.set_data_from_numpy(array, binary_data=binary)
    return column


assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready(MODEL)
assert client.is_model_ready(MODEL, "1")
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
assert client.get_model_metadata(MODEL)["outputs"][0]["shape"] == [-1, 32, 32, 3]
assert client.get_model_config(MODEL)["max_batch_size"] == 64
assert client.get_model_repository_index()[0]["state"] == "READY"
for arguments in ((), (MODEL,), (MODEL, "1")):
    assert len(client.get_inference_statistics(*arguments)["model_stats"]) == 1

steps = tensor("num_steps", [2], "INT32")
labels = (("BYTES", ["ankle-boot", " Bag "]), ("INT32", [9, 8]))
for (datatype, values), binary, binary_output, compression in itertools.product(
    labels, (True, False), (True, False), (None, "gzip", "deflate")
):
    answer = client.infer(
        MODEL,
        [tensor("label", values, datatype, binary), steps],
        outputs=[triton.InferRequestedOutput("images", binary_data=binary_output)],
        request_id="7",
        priority=1,
        timeout=300_000_000,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert answer.as_numpy("images").shape == (2, 32, 32, 3)
    assert answer.get_response()["id"] == "7"
assert client.infer(MODEL, [tensor("label", ["bag"], "BYTES"), steps]).as_numpy("images").shape == (1, 32, 32, 3)
pending = client.async_infer(MODEL, [tensor("label", ["bag"], "BYTES"), steps])
assert pending.get_result().as_numpy("images").shape == (1, 32, 32, 3)

client.unload_model(MODEL)
assert not client.is_model_ready(MODEL)
client.load_model(MODEL)
assert client.is_model_ready(MODEL)

"""A Python client generated from the service's OpenAPI document: URL as the only argument."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

url = sys.argv[1]
folder = Path(tempfile.mkdtemp())
generator = [str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--meta", "none"]
subprocess.run([*generator, "--url", f"{url}/openapi.json", "--output-path", str(folder / "sdk")], check=True)
sys.path.insert(0, str(folder))

from sdk import Client  # noqa: E402
from sdk.api.images import create_image  # noqa: E402
from sdk.api.jobs import cancel_job, create_job, get_job, list_jobs  # noqa: E402
from sdk.api.models import list_models  # noqa: E402
from sdk.models import ErrorResponse, ImageRequest, ImagesResponse, JobList, JobObject, JobState, ModelList  # noqa: E402

client = Client(base_url=url, timeout=300)
models = list_models.sync(client=client)
assert isinstance(models, ModelList)
assert "sneaker" in models.data[0].labels

images = create_image.sync(client=client, body=ImageRequest(prompt="sneaker", n=2, seed=7, num_steps=4))
assert isinstance(images, ImagesResponse)
assert (len(images.data), images.seed, images.num_steps) == (2, 7, 4)
assert images.timings.total_ms > 0

refused = create_image.sync(client=client, body=ImageRequest(prompt="sneaker", num_steps=10**6))
assert isinstance(refused, ErrorResponse)
assert refused.error.param == "num_steps"

job = create_job.sync(client=client, body=ImageRequest(prompt=7, num_steps=4))
assert isinstance(job, JobObject)
while job.status in (JobState.QUEUED, JobState.RUNNING):
    time.sleep(0.1)
    job = get_job.sync(job.id, client=client)
    assert isinstance(job, JobObject)
assert job.status is JobState.SUCCEEDED
assert job.data
jobs = list_jobs.sync(client=client, limit=1)
assert isinstance(jobs, JobList)
assert jobs.data[0].id == job.id
assert isinstance(cancel_job.sync(job.id, client=client), JobObject)

"""The Helm chart: rendered by `helm`, against Kubernetes' schemas, the kustomizations and what the chart repeats."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.system.test_kubernetes import FOLDER, PUBLISHED, ROOT, Document, name_of, pods_of

CHART = ROOT / "docker" / "helm" / "msf-serve"
DIGEST = f"sha256:{'0' * 64}"
EVERYTHING = (
    "keda.enabled=true,monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true,apiKeys.existingSecret=keys,"
    "webhooks.existingSecret=hooks,planCache.existingClaim=plans,models.pull={https://models.example/emoji/1},"
    "models.existingSecret=bucket,"
    f"imagePullSecrets={{one,two}},server.image.digest={DIGEST}"
)
SERVER, WORKER = "Deployment msf-server", "Deployment msf-worker"


def run(program: str, *arguments: str | Path) -> str:
    """Run a program and return what it prints; skip the test where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not on PATH")
    done = subprocess.run((path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(*arguments: str | Path) -> dict[str, Document]:
    """Return the documents of the chart by kind and name."""
    text = run("helm", "template", "msf", CHART, "--namespace", "msf", *arguments)
    return {name_of(document): document for document in yaml.safe_load_all(text) if document}


def setting(values: str) -> tuple[str, ...]:
    return ("--set", values)


def test_lint_is_clean() -> None:
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", CHART)
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", CHART, "--values", CHART / "values-gpu.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        setting(EVERYTHING),
        ("--values", CHART / "values-gpu.yaml"),
        setting("redis.enabled=false,redis.url=rediss://msf@redis.example:6379,redis.existingSecret=redis"),
        setting("networkPolicy.enabled=false,models.existingClaim=models,worker.replicas=3"),
    ],
    ids=["defaults", "everything", "gpu", "managed redis", "volumes"],
)
def test_renderings_fit_the_schemas(arguments: tuple[str | Path, ...]) -> None:
    for document in render(*arguments).values():
        if document["apiVersion"] in PUBLISHED:
            kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_kustomizations_are_what_make_manifests_renders() -> None:
    """Each rendered file equals the output of its line in the Makefile, so the two cannot drift apart."""
    makefile = (ROOT / "Makefile").read_text()
    lines = re.findall(r"\$\(call render,([^,]+),(.*)\)\n", makefile)
    values = FOLDER / "values.yaml"
    assert len(lines) == 4
    for file, arguments in lines:
        fixed = ("template", "msf", CHART, "--namespace", "msf", "--values", values)
        rendered = run("helm", *fixed, *shlex.split(arguments))
        assert (FOLDER / file).read_text() == rendered, f"run `make manifests`: {file} differs"


def test_the_gpu_overlay_is_the_chart_with_the_values_of_a_gpu() -> None:
    built = yaml.safe_load_all(run("kubectl", "kustomize", FOLDER / "gpu"))
    rendered = render("--values", FOLDER / "values.yaml", "--values", CHART / "values-gpu.yaml")
    for document in built:
        document["metadata"].pop("namespace", None)
        name = name_of(document)
        if document["kind"] != "Namespace":
            assert pruned(document) == pruned(rendered.pop(name)), name
    assert not rendered


def pruned(value: Any) -> Any:
    """Return `value` with lists of named objects ordered by name: a merge may order them anew."""
    if isinstance(value, dict):
        return {key: pruned(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        items = [pruned(item) for item in value]
        return (
            sorted(items, key=lambda item: item["name"]) if items and all("name" in item for item in items) else items
        )
    return value


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("workers.replicas=2", "workers"),
        ("server.image.digest=latest", "/server/image/digest"),
        ("keda.minReplicas=0", "/keda/minReplicas"),
        ("redis.enabled=false", "redis.url is required"),
        ("server.env.MSF_PORT=1", "/server/env/MSF_PORT"),  # a number: variables are texts
    ],
)
def test_values_that_cannot_work_are_refused(values: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(problem)):
        render(*setting(values))


def test_options_reach_the_pods() -> None:
    documents = render(*setting(EVERYTHING))
    _, server = pods_of(documents[SERVER])
    _, worker = pods_of(documents[WORKER])
    assert server["containers"][0]["image"] == f"msf-serve/server@{DIGEST}"
    variables = {variable["name"]: variable for variable in server["containers"][0]["env"]}
    assert variables["MSF_API_KEYS_FILE"]["value"].startswith(server["containers"][0]["volumeMounts"][1]["mountPath"])
    assert variables["MSF_WEBHOOK_SECRET"]["valueFrom"]["secretKeyRef"] == {"name": "hooks", "key": "secret"}
    [puller] = worker["initContainers"]
    assert puller["command"][-1] == "https://models.example/emoji/1"
    assert puller["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert {"name": "MSF_MODEL_REPO", "value": "/models"} in worker["containers"][0]["env"]
    assert {"name": "plans", "persistentVolumeClaim": {"claimName": "plans"}} in worker["volumes"]
    assert "replicas" not in documents[WORKER]["spec"]  # KEDA's
    rules = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text())
    assert documents["PrometheusRule msf"]["spec"] == rules


def test_the_secret_of_redis_has_the_rights_that_the_script_gives(tmp_path: Path) -> None:
    secret = render()["Secret msf-redis"]["stringData"]
    digest = hashlib.sha256(secret["password"].encode()).hexdigest()
    assert f"#{digest} " in secret["users.acl"]
    subprocess.run(("sh", ROOT / "docker/redis/credentials.sh", tmp_path), check=True)
    rights = re.sub("#[0-9a-f]{64}", f"#{digest}", (tmp_path / "users.acl").read_text())
    assert secret["users.acl"] == rights
    assert "user default off resetpass ~* &* +@all\n" in rights  # fewer rights would cost Redis 7 its transactions


def test_the_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]

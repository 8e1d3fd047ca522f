"""The kustomizations, rendered from the Helm chart, against Kubernetes' schemas and the code that they deploy."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from msf_cli.settings import Settings
from msf_server.metrics import Metrics
from msf_worker.metrics import WorkerMetrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
PUBLISHED = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1")
Document = dict[str, Any]


def read_documents(pattern: str) -> list[Document]:
    texts = [file.read_text() for file in sorted(FOLDER.glob(pattern)) if file.name != "kustomization.yaml"]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


BASE = read_documents("base/*.yaml")
[GPU_WORKER] = read_documents("gpu/*.yaml")
[SCALED] = read_documents("keda/*.yaml")
[POD_MONITOR] = read_documents("monitoring/*.yaml")
WORKLOADS = [document for document in [*BASE, GPU_WORKER] if document["kind"] in ("Deployment", "StatefulSet")]


def name_of(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def component_of(document: Document) -> str:
    return str(document["metadata"]["labels"]["app.kubernetes.io/component"])


def pods_of(document: Document) -> tuple[dict[str, str], Document]:
    """Return the labels and the spec of a workload's pods."""
    template = document["spec"]["template"]
    return template["metadata"]["labels"], template["spec"]


@pytest.mark.parametrize("document", [d for d in [*BASE, GPU_WORKER] if d["apiVersion"] in PUBLISHED], ids=name_of)
def test_manifests_fit_the_schemas(document: Document) -> None:
    kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("document", WORKLOADS, ids=name_of)
def test_containers_have_few_rights_and_time_to_drain(document: Document) -> None:
    _, pod = pods_of(document)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"], "a Service named msf-... would set variables that begin with MSF_"
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    if component_of(document) != "redis":
        assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["drain_timeout_s"].default


def test_a_drain_may_evict_the_only_worker() -> None:
    budgets = {component_of(document): document["spec"] for document in BASE if "Budget" in document["kind"]}
    assert set(budgets) == {"server", "worker"}
    for budget in budgets.values():
        assert budget["maxUnavailable"] == 1
        assert "minAvailable" not in budget


def test_gpu_workers_are_replaced_without_a_spare_gpu() -> None:
    assert GPU_WORKER["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    _, pod = pods_of(GPU_WORKER)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_every_pod_that_is_scraped_has_the_job_label_that_the_alerts_expect() -> None:
    """`job` is the pod's label `app.kubernetes.io/component`, with the operator as without it."""
    label = POD_MONITOR["spec"]["jobLabel"]
    rules = (ROOT / "docker/prometheus/rules.yml").read_text()
    expected = {job for jobs in re.findall(r'job=~?"([^"]+)"', rules) for job in jobs.split("|")}
    endpoints = {endpoint["port"] for endpoint in POD_MONITOR["spec"]["podMetricsEndpoints"]}
    jobs = set()
    for document in BASE:
        if document["kind"] in ("Deployment", "StatefulSet"):
            labels, pod = pods_of(document)
            ports = {port["name"] for container in pod["containers"] for port in container["ports"]}
            assert POD_MONITOR["spec"]["selector"]["matchLabels"].items() <= labels.items()
            jobs |= {labels[label]} if ports & endpoints else set()
    assert jobs == expected == {"server", "worker"}
    [scrape] = yaml.safe_load((ROOT / "docker/prometheus/kubernetes.yml").read_text())["scrape_configs"]
    [source] = [rule["source_labels"] for rule in scrape["relabel_configs"] if rule.get("target_label") == "job"]
    assert source == ["__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)]


def test_workers_scale_on_metrics_that_exist_and_never_to_none() -> None:
    [trigger] = SCALED["spec"]["triggers"]
    loop = asyncio.new_event_loop()
    try:
        registries = (Metrics(loop).registry, WorkerMetrics().registry)
    finally:
        loop.close()
    names = {sample_name(metric.name, metric.type) for registry in registries for metric in registry.collect()}
    used = set(re.findall(r"msf_\w+", trigger["metadata"]["query"]))
    assert len(used) == 3
    assert used <= names
    assert SCALED["spec"]["minReplicaCount"] == 1
    assert SCALED["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    [worker] = [document for document in BASE if name_of(document) == "Deployment msf-worker"]
    assert SCALED["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    assert "replicas" not in worker["spec"], "applying the manifests again would undo the autoscaler's decision"


def sample_name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def test_environment_variables_are_settings() -> None:
    names = {
        variable["name"]
        for document in WORKLOADS
        for container in pods_of(document)[1]["containers"]
        for variable in container.get("env", ())
    }
    assert {name.removeprefix("MSF_").lower() for name in names} <= Settings.model_fields.keys()


def policies() -> dict[str, Document]:
    return {
        document["metadata"]["name"].removeprefix("msf-"): document["spec"]
        for document in BASE
        if document["kind"] == "NetworkPolicy"
    }


def is_selected(selector: Document, component: str) -> bool:
    """Evaluate a pod selector for the pods of a component."""
    labels = next(pods_of(document)[0] for document in WORKLOADS if component_of(document) == component)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels[term["key"]] in term["values"] for term in selector.get("matchExpressions", ())
    )


def test_only_servers_and_workers_reach_redis() -> None:
    rules = [
        rule
        for policy in policies().values()
        if is_selected(policy["podSelector"], "redis") and "Ingress" in policy["policyTypes"]
        for rule in policy.get("ingress", ())
    ]
    [[client]] = [rule["from"] for rule in rules]
    assert is_selected(client["podSelector"], "server")
    assert is_selected(client["podSelector"], "worker")
    assert not is_selected(client["podSelector"], "redis")


@pytest.mark.parametrize("component", ["server", "worker", "redis"])
def test_what_no_policy_allows_is_refused(component: str) -> None:
    policy = policies()["nothing-else"]
    assert is_selected(policy["podSelector"], component)
    assert policy.keys() == {"podSelector", "policyTypes"}
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_a_worker_reaches_redis_and_names_alone() -> None:
    destinations = [
        port["port"]
        for policy in policies().values()
        if is_selected(policy["podSelector"], "worker")
        for rule in policy.get("egress", ())
        for port in rule["ports"]
    ]
    assert sorted(set(destinations)) == [53, 6379]


def test_no_password_is_in_an_environment() -> None:
    for document in WORKLOADS:
        for container in pods_of(document)[1]["containers"]:
            for variable in container.get("env", ()):
                assert not re.search(r"secret|password", variable["name"], re.IGNORECASE) or variable["name"].endswith(
                    "_FILE"
                )
                assert not re.search(r"://[^/]*:[^/]*@", variable["value"])

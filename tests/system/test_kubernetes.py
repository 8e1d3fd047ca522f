"""The manifests against Kubernetes' published schemas, and against the code that they deploy."""

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

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
PUBLISHED = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1")
DOCUMENTS: list[dict[str, Any]] = [
    document for file in sorted(FOLDER.glob("base/*.yaml")) for document in yaml.safe_load_all(file.read_text())
]


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document.get('metadata', {}).get('name', '')}"


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d["apiVersion"] in PUBLISHED], ids=name_of)
def test_manifests_fit_the_schemas(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d["kind"] in ("Deployment", "StatefulSet")], ids=name_of)
def test_containers_have_few_rights_and_time_to_drain(document: dict[str, Any]) -> None:
    pod = document["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["readinessProbe"]
    if document["metadata"]["name"] == "worker":
        assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["drain_timeout_s"].default


def test_workers_scale_on_a_metric_that_exists_and_never_to_none() -> None:
    [scaled] = [document for document in DOCUMENTS if document["kind"] == "ScaledObject"]
    [trigger] = scaled["spec"]["triggers"]
    loop = asyncio.new_event_loop()
    try:
        names = {metric.name for metric in Metrics(loop).registry.collect()}
    finally:
        loop.close()
    assert set(re.findall(r"msf_\w+", trigger["metadata"]["query"])) <= names
    assert scaled["spec"]["minReplicaCount"] == 1


def test_environment_variables_are_settings() -> None:
    names = {
        variable["name"]
        for document in DOCUMENTS
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
        for variable in container["env"]
    }
    assert {name.removeprefix("MSF_").lower() for name in names} <= Settings.model_fields.keys()


def policies() -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["name"]: document["spec"] for document in DOCUMENTS if document["kind"] == "NetworkPolicy"
    }


def test_only_servers_and_workers_reach_redis() -> None:
    clients = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["server", "worker"]}]}}
    assert policies()["nothing-else"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [rule] = policies()["redis"]["ingress"]
    assert rule["from"] == [clients]
    own = [name for name, policy in policies().items() if policy["podSelector"].get("matchLabels") == {"app": "redis"}]
    assert own == ["redis"]


def test_a_worker_reaches_redis_and_names_alone() -> None:
    destinations = [
        port["port"]
        for policy in policies().values()
        if "worker" in str(policy["podSelector"])
        for rule in policy.get("egress", ())
        for port in rule["ports"]
    ]
    assert sorted(set(destinations)) == [53, 6379]


def test_no_password_is_in_an_environment() -> None:
    for document in DOCUMENTS:
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            for variable in container.get("env", ()):
                assert not re.search(r"secret|password", variable["name"], re.IGNORECASE) or variable["name"].endswith(
                    "_FILE"
                )
                assert not re.search(r"://[^/]*:[^/]*@", variable["value"])

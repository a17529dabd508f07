"""Helm's own install, upgrade, test, rollback and uninstall, against a small API server: order, and what stays."""

import base64
from collections.abc import Iterator

import helm_python
import pytest

from helm.rendering import CHART, NAMESPACE, Object, values_of
from tests.chart.api_server import ApiServer

RELEASE = "gotohotel"
SECONDS = 30
MADE_SECRETS = {
    "gotohotel-secrets",
    *(f"gotohotel-tls-{part}" for part in ("authority", "order", "pay", "reservation", "mypage", "gateway", "egress")),
}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """An empty cluster."""
    with ApiServer(version="1.29") as api:
        yield api


@pytest.fixture
def helm(api: ApiServer) -> Iterator[helm_python.Config]:
    """Helm, for this cluster."""
    with helm_python.Config(kubeconfig_content=api.kubeconfig, storage_driver="memory", namespace=NAMESPACE) as config:
        yield config


def install(helm: helm_python.Config, values: Object) -> Object:
    """`helm install --wait`."""
    done: Object = helm.install(str(CHART), RELEASE, values, wait="watcher", timeout=SECONDS, create_namespace=True)
    return done


def test_a_release_lives(api: ApiServer, helm: helm_python.Config) -> None:
    """Installed, tested, upgraded, rolled back, uninstalled and installed again, with the same passwords and keys."""
    assert install(helm, values_of("laptop"))["status"] == "deployed"
    assert {name for kind, name in api.objects if kind == "Secret"} == MADE_SECRETS
    assert ("Job", "gotohotel-migrate-1") in api.objects
    assert ("Job", "gotohotel-catalogue") in api.objects
    made = secrets(api)
    order = api.objects["Deployment", "gotohotel-order"]

    assert helm.test(RELEASE, timeout=SECONDS)["release"]["status"] == "deployed"
    assert ("apply", "Pod", "gotohotel-smoke") in api.log

    begun = len(api.log)
    helm.upgrade(str(CHART), RELEASE, {**values_of("laptop"), "pay": {"replicas": 3}}, wait="watcher", timeout=SECONDS)
    assert secrets(api) == made
    assert ("delete", "Job", "gotohotel-migrate-1") in api.log[begun:]
    assert ("Job", "gotohotel-migrate-2") in api.objects
    assert ("Job", "gotohotel-catalogue") not in api.objects  # sample room types come once
    assert api.objects["Deployment", "gotohotel-pay"]["spec"]["replicas"] == 3
    # What did not change is not started again.
    assert api.objects["Deployment", "gotohotel-order"]["metadata"]["generation"] == order["metadata"]["generation"]
    assert api.objects["Deployment", "gotohotel-gateway"]["metadata"]["generation"] == 1

    helm.rollback(RELEASE, wait="watcher", timeout=SECONDS)
    assert [each["status"] for each in helm.history(RELEASE)] == ["superseded", "superseded", "deployed"]
    assert api.objects["Deployment", "gotohotel-pay"]["spec"]["replicas"] == 1
    assert secrets(api)["gotohotel-secrets"] == made["gotohotel-secrets"]

    helm.uninstall(RELEASE, wait="watcher", timeout=SECONDS)
    # Volumes of StatefulSets stay too; they are the StatefulSet controller's, not Helm's. Tests' pods are nobody's.
    assert {(kind, name) for kind, name in api.objects if kind != "Namespace"} == {
        ("PersistentVolumeClaim", "gotohotel-operator"),
        ("Secret", "gotohotel-secrets"),
        ("Pod", "gotohotel-smoke"),
    }
    install(helm, values_of("laptop"))
    assert secrets(api)["gotohotel-secrets"] == made["gotohotel-secrets"]


def secrets(api: ApiServer) -> dict[str, Object]:
    """The data of all Secrets."""
    return {name: each["data"] for (kind, name), each in api.objects.items() if kind == "Secret"}


def test_a_later_part_gets_a_certificate_of_the_same_authority(api: ApiServer, helm: helm_python.Config) -> None:
    """And a password that is missing is made; the others stay."""
    install(helm, {})
    made = secrets(api)
    del api.objects["Secret", "gotohotel-tls-pay"]
    del api.objects["Secret", "gotohotel-secrets"]["data"]["mypage_svc_nats"]

    helm.upgrade(str(CHART), RELEASE, {}, wait="watcher", timeout=SECONDS)

    now = secrets(api)
    assert now["gotohotel-tls-pay"]["ca.crt"] == made["gotohotel-tls-authority"]["tls.crt"]
    assert now["gotohotel-tls-pay"]["tls.crt"] != made["gotohotel-tls-pay"]["tls.crt"]
    assert len(base64.b64decode(now["gotohotel-secrets"].pop("mypage_svc_nats"))) == 48
    made["gotohotel-secrets"].pop("mypage_svc_nats", None)
    assert now["gotohotel-secrets"] == made["gotohotel-secrets"]


def test_a_migration_that_fails_fails_the_upgrade(api: ApiServer, helm: helm_python.Config) -> None:
    """`helm upgrade --wait` says so; Kubernetes keeps the pods of the release before, because the new ones wait."""
    install(helm, {})
    api.failing.add(("Job", "gotohotel-migrate-2"))

    with pytest.raises(helm_python.HelmReleaseError, match=r"gotohotel-migrate-2 not ready\. status: Failed"):
        helm.upgrade(str(CHART), RELEASE, {"pay": {"replicas": 3}}, wait="watcher", timeout=SECONDS)


def test_a_hotel_that_does_not_work_fails_the_test(api: ApiServer, helm: helm_python.Config) -> None:
    """`helm test`."""
    install(helm, {})
    api.failing.add(("Pod", "gotohotel-smoke"))

    with pytest.raises(helm_python.HelmReleaseError, match="gotohotel-smoke failed"):
        helm.test(RELEASE, timeout=SECONDS)


def test_the_production_preset_installs(api: ApiServer, helm: helm_python.Config) -> None:
    """With cert-manager's objects, and without Secrets of the chart's own."""
    assert install(helm, values_of("production"))["status"] == "deployed"
    assert not [name for kind, name in api.objects if kind == "Secret"]
    assert ("Certificate", "gotohotel-tls-order") in api.objects

"""The chart as Helm renders it: what Kubernetes would refuse, and what it would take and never run.

Long because each way in which a manifest can be wrong has a test. Nothing here needs a cluster. What only one can show
(admission, scheduling, scaling, network policies) is not tested.
"""

import base64
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gotohotel.rpc.health import LIVE, STARTED
from gotohotel.signatures import SigningKey, VerifyKey
from helm import generate
from helm.rendering import CHART, GOLDEN, NAMESPACE, PRESETS, RELEASE, Object, Rendered, golden, render, values_of
from ops import tokens
from ops.addresses import Addresses
from ops.services import SERVICES, part
from ops.settings import PORTS

VERSIONS = ("1.29.0", kubernetes_validate.latest_version())  # the lowest that the chart takes, and the highest known
OTHERS_KINDS = ("Certificate", "Issuer", "HTTPRoute", "ServiceMonitor")  # Kubernetes itself has no schema for them
SERVICE_PARTS = [part(name) for name in SERVICES]


@pytest.fixture(scope="module", params=PRESETS)
def preset(request: pytest.FixtureRequest) -> str:
    """The name of a preset."""
    return str(request.param)


@pytest.fixture(scope="module")
def rendered(preset: str) -> Rendered:
    """The chart with a preset's values."""
    return render(values_of(preset))


@pytest.fixture(scope="module")
def defaults() -> Rendered:
    """The chart with the default values."""
    return render({})


def test_helm_finds_nothing_to_complain_about(preset: str) -> None:
    """At the lowest version of Kubernetes and at the highest."""
    for version in VERSIONS:
        found = helm_python.lint(str(CHART), values_of(preset), strict=True, kube_version=version)
        assert [each for each in found["messages"] if each["severity"] >= 2] == []
        assert not found["errors"]


def test_kubernetes_knows_every_field(rendered: Rendered) -> None:
    """Strictly: a field that it does not know is refused."""
    for each in rendered.objects:
        if each["kind"] not in OTHERS_KINDS:
            for version in VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)


def test_the_render_is_the_one_that_was_read(preset: str, rendered: Rendered) -> None:
    """`make chart` writes it anew; what a change of the chart changes is read there."""
    assert golden(rendered) == (GOLDEN / f"{preset}.yaml").read_text()


def test_generated_files_are_current() -> None:
    """`make chart` writes them."""
    assert (CHART / "files" / "services.yaml").read_text() == generate.services()
    text = (CHART / "README.md").read_text()
    assert text == generate.readme(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 3}, "replica"),
        ({"order": {"replicas": 0}}, "minimum"),
        ({"order": {"replicsa": 3}}, "replicsa"),
        ({"order": {"settings": {"ORDR_UNPAID_MINUTES": "5"}}}, "ORDR_UNPAID_MINUTES"),
        ({"order": {"settings": {"ORDER_UNPAID_MINUTES": 5}}}, "string"),
        ({"order": {"resources": {"limits": {"memory": "512 MB"}}}}, "pattern"),
        ({"gateway": {"service": {"type": "loadbalancer"}}}, "one of"),
        ({"nats": {"streamReplicas": 2}}, "one of"),
        ({"certificates": {"mode": "certmanager"}}, "one of"),
        ({"oidc": {"issuer": "x", "keysUrl": "http://keys"}}, "pattern"),
        ({"postgres": {"builtin": {"enabled": False}}}, "postgres.external.host is needed"),
        ({"nats": {"builtin": {"enabled": False}}}, "nats.external.host is needed"),
        ({"certificates": {"mode": "existing"}}, "certificates.existingSecretPrefix is needed"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
        ({"pay": {"autoscaling": {"enabled": True, "minReplicas": 20}}}, "pay.autoscaling.minReplicas"),
        ({"postgres": {"builtin": {"enabled": False}, "external": {"host": "db"}}}, "secrets.existingSecret is needed"),
        ({"oidc": {"issuer": "https://sso.example.org"}}, "oidc.issuer and oidc.keysUrl go together"),
        ({"order": {"settings": {"ORDER_PORT": "1"}}}, "not"),
    ],
)
def test_a_value_that_is_almost_right_is_refused(values: Object, words: str) -> None:
    """By the schema, or by the template that needs it."""
    with pytest.raises(helm_python.HelmError, match=re.escape(words)):
        render(values)


@pytest.mark.parametrize("release", ["true", "2hotel", "a.b", "c" * 53, "my-gotohotel"])
def test_any_release_name_gives_names_that_kubernetes_takes(release: str) -> None:
    """Helm allows dots, digits at the beginning, and words that YAML takes for something else."""
    for each in render({}, release=release).objects:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", each["metadata"]["name"]), each["metadata"]["name"]
        assert len(each["metadata"]["name"]) <= 63
        assert all(isinstance(value, str) and len(value) <= 63 for value in each["metadata"]["labels"].values())


def test_odd_values_are_quoted() -> None:
    """They reach Kubernetes as they are; $(…) is not filled in."""
    rendered = render(
        {
            "ingress": {"enabled": True, "host": "*.example.org"},
            "order": {"settings": {"ORDER_LOG_LEVEL": "a: 'b' $(NATS_PASSWORD)"}},
            "image": {"tag": "x" * 100, "pullSecrets": ["mine"]},
            "oidc": {"issuer": "https://sso.example.org", "keysUrl": "https://sso.example.org:8443/keys"},
        }
    )
    [ingress] = rendered.of("Ingress")
    assert ingress["spec"]["rules"][0]["host"] == "*.example.org"
    settings = rendered.named("Deployment", "order")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "ORDER_LOG_LEVEL", "value": "a: 'b' $$(NATS_PASSWORD)"} in settings
    assert all(spec["imagePullSecrets"] == [{"name": "mine"}] for _, _, spec in rendered.pods())
    assert {"port": 8443, "protocol": "TCP"} in rendered.named("NetworkPolicy", "gateway")["spec"]["egress"][1]["ports"]
    for each in rendered.objects:
        kubernetes_validate.validate(each, VERSIONS[0], strict=True)


def test_every_value_has_an_explanation_and_a_type() -> None:
    """values.yaml is the manual, and the schema knows each of its keys and no other."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    table = generate.values_table()
    for path, _ in leaves(values, schema):
        assert f"`{path}`" in table, path
    known = {path for path, _ in leaves(values, schema)}
    assert known == {path for path in schema_leaves(schema, schema) if path != "global"}


def leaves(values: Object, schema: Object, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, default) of each value that the schema does not look into."""
    for key, value in values.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and has_keys(schema, name):
            yield from leaves(value, schema, name)
        else:
            yield name, value


def has_keys(schema: Object, path: str) -> bool:
    """Whether a value is described key by key, amounts of resources excepted."""
    return any(known.startswith(f"{path}.") for known in schema_leaves(schema, schema))


def schema_leaves(root: Object, schema: Object, path: str = "") -> Iterator[str]:
    """The paths of the values that the schema knows."""
    if reference := schema.get("$ref"):
        schema = root["definitions"][reference.rsplit("/", 1)[-1]]
    if "properties" not in schema or "cpu" in schema["properties"]:
        yield path
        return
    for key, value in schema["properties"].items():
        yield from schema_leaves(root, value, f"{path}.{key}".lstrip("."))


# ---------------------------------------------------------------------------------------------- what refers to what


def test_names_are_unique(rendered: Rendered) -> None:
    """Of two objects with one name the second would replace the first."""
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered.objects]
    assert len(names) == len(set(names))


def test_selectors_hit_the_pods_that_are_meant(rendered: Rendered) -> None:
    """Those of Deployments and StatefulSets their own pods alone; those of others, some pods."""
    pods = [(name, labels) for name, labels, _ in rendered.pods()]
    for each in rendered.of("Deployment", "StatefulSet"):
        hit = [name for name, labels in pods if matches(each["spec"]["selector"]["matchLabels"], labels)]
        assert hit == [f"{each['kind']}/{each['metadata']['name']}"]
    for each in rendered.of("Service"):
        hit = [name for name, labels in pods if matches(each["spec"]["selector"], labels)]
        assert len(hit) == 1, each["metadata"]["name"]
    for each in rendered.of("PodDisruptionBudget"):
        hit = [name for name, labels in pods if matches(each["spec"]["selector"]["matchLabels"], labels)]
        assert hit == [f"Deployment/{each['metadata']['name']}"]
    for each in rendered.of("NetworkPolicy"):
        for selector in (each["spec"]["podSelector"], *peers(each)):
            assert any(matches(selector["matchLabels"], labels) for _, labels in pods), each["metadata"]["name"]


def matches(selector: Object, labels: Object) -> bool:
    """Whether a pod with these labels is meant."""
    return selector.items() <= labels.items()


def peers(policy: Object) -> Iterator[Object]:
    """The pods with which a policy's pods may talk."""
    for side, word in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(side, []):
            for peer in rule.get(word, []):
                yield peer["podSelector"]


def test_ports_that_are_named_exist(rendered: Rendered) -> None:
    """In Services, probes, and network policies."""
    pods = rendered.pods()
    for each in rendered.of("Service"):
        [(_, _, spec)] = [pod for pod in pods if matches(each["spec"]["selector"], pod[1])]
        ports = {port["name"] for container in spec["containers"] for port in container.get("ports", [])}
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    for name, _, spec in pods:
        for container in spec["containers"]:
            named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                if port := probe.get("grpc", probe.get("httpGet", probe.get("tcpSocket", {}))).get("port"):
                    assert port in named or port in named.values(), (name, kind)
    every = {port["name"] for _, _, spec in pods for each in spec["containers"] for port in each.get("ports", [])}
    for policy in rendered.of("NetworkPolicy"):
        for rule in (*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])):
            assert all(isinstance(port["port"], int) or port["port"] in every for port in rule.get("ports", []))


def test_everything_that_is_mounted_or_read_is_there(preset: str, rendered: Rendered) -> None:
    """Secrets (with their keys), ConfigMaps, volumes, claims, accounts. What others make is named in the values."""
    made = {(each["kind"], each["metadata"]["name"]): each for each in rendered.objects}
    for each in rendered.of("Certificate"):
        made["Secret", each["spec"]["secretName"]] = {"data": dict.fromkeys(("tls.crt", "tls.key", "ca.crt"))}
    others = set(re.findall(r"(?:[sS]ecret\w*|Secret): (hotel-[\w-]+)", yaml.safe_dump(values_of(preset))))
    for name, _, spec in rendered.pods():
        assert ("ServiceAccount", spec["serviceAccountName"]) in made, name
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        claims = {
            claim["metadata"]["name"]
            for each in rendered.of("StatefulSet")
            for claim in each["spec"]["volumeClaimTemplates"]
        }
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in made
            if secret := volume.get("secret"):
                wanted = [item["key"] for item in secret.get("items", [])]
                assert has_keys_of(made, others, secret["secretName"], wanted), (name, secret)
        used = set()
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
            used |= set(mounts)
            assert set(mounts) <= {*volumes, *claims}, name
            for variable in container.get("env", []):
                if source := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert has_keys_of(made, others, source["name"], [source["key"]]), (name, source)
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in made
        assert set(volumes) <= used, name


def has_keys_of(made: dict[tuple[str, str], Object], others: set[str], name: str, keys: list[str]) -> bool:
    """Whether a Secret is made by the chart with these keys, or by somebody else."""
    secret = made.get(("Secret", name))
    return name in others if secret is None else set(keys) <= secret["data"].keys()


def test_variables_in_values_are_defined_before(rendered: Rendered) -> None:
    """$(NAME) is filled in only if NAME comes first; otherwise it stays as it is, and the password is wrong."""
    for name, _, spec in rendered.pods():
        for container in spec["containers"]:
            before: set[str] = set()
            for variable in container.get("env", []):
                assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= before, name
                assert variable["name"] not in before, (name, variable["name"])
                before.add(variable["name"])


def test_autoscalers_have_a_target_and_the_target_has_no_number(rendered: Rendered) -> None:
    """With a number of replicas in it, each upgrade would undo what the autoscaler did."""
    targets = {each["spec"]["scaleTargetRef"]["name"] for each in rendered.of("HorizontalPodAutoscaler")}
    for each in rendered.of("Deployment"):
        assert ("replicas" not in each["spec"]) == (each["metadata"]["name"] in targets)
        if each["metadata"]["name"] in targets:
            for container in each["spec"]["template"]["spec"]["containers"]:
                assert "cpu" in container["resources"]["requests"]
    assert targets <= {each["metadata"]["name"] for each in rendered.of("Deployment")}


def test_the_desk_scales_as_the_original_did() -> None:
    """From 1 to 10 at 20 % of the CPU that is requested."""
    values = {"reservation": {"autoscaling": {"enabled": True}}}
    spec = render(values).named("HorizontalPodAutoscaler", "reservation")["spec"]

    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 10)
    assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 20


# ---------------------------------------------------------------------------------------------- pods


def test_pods_are_restricted(rendered: Rendered) -> None:
    """As the Pod Security Standard `restricted` demands, with read-only root and without an API token."""
    for name, _, spec in rendered.pods():
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_pods_ask_for_what_they_need(preset: str, rendered: Rendered) -> None:
    """Requests are within limits; the laptop's fit in 2 cores and 4 GiB, with room for Kubernetes itself."""
    cpu = memory = 0.0
    for name, _, spec in rendered.pods():
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert quantity(requests["memory"]) <= quantity(limits["memory"]), name
            assert quantity(requests["cpu"]) <= quantity(limits.get("cpu", "64"))
        if not name.startswith(("Job/", "Pod/")):
            cpu += sum(quantity(each["resources"]["requests"]["cpu"]) for each in spec["containers"])
            memory += sum(quantity(each["resources"]["limits"]["memory"]) for each in spec["containers"])
    if preset == "laptop":
        assert cpu < 1
        assert memory < 4 * 1024**3


def quantity(text: str) -> float:
    """Kubernetes' quantities as numbers."""
    units = {"m": 1e-3, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "": 1}
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return float(number) * units[unit]


def test_probes_ask_three_different_questions(rendered: Rendered) -> None:
    """Started, ready, alive; and a pod that is told to end serves on longer than its address is known."""
    for component in SERVICE_PARTS:
        spec = rendered.named("Deployment", component)["spec"]["template"]["spec"]
        [container] = spec["containers"]
        asked = [container[kind]["grpc"].get("service") for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert asked == [STARTED, None, LIVE]
        environment = {each["name"]: each.get("value") for each in container["env"]}
        starts = container["startupProbe"]
        patience = starts["periodSeconds"] * starts["failureThreshold"]
        assert patience > float(environment[f"{component.upper()}_START_SECONDS"])
        [_, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
        assert spec["terminationGracePeriodSeconds"] > int(seconds) + 1 + 5 + 20 + 5 + 5


def test_no_replica_is_missing_during_a_rollout(rendered: Rendered) -> None:
    """A new pod is ready before an old one goes."""
    for component in (*SERVICE_PARTS, "gateway"):
        strategy = rendered.named("Deployment", component)["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


# ---------------------------------------------------------------------------------------------- settings and secrets


def test_services_get_the_settings_that_they_get_on_one_machine(defaults: Rendered) -> None:
    """A setting that a release adds there must be added here."""
    wanted = Addresses.service_environment
    for name in SERVICES:
        container = defaults.named("Deployment", part(name))["spec"]["template"]["spec"]["containers"][0]
        given = {each["name"] for each in container["env"]}
        assert wanted(Everything(), name).keys() - given <= {"MYPAGE_STORE"}  # its default is postgres


class Everything(Addresses):
    """Addresses with any credentials."""

    def __init__(self) -> None:
        super().__init__(CHART, PORTS)
        object.__setattr__(self, "credentials", dict.fromkeys(generate.secret_keys(), "x" * 32))


def test_a_service_sees_its_own_secrets_alone(defaults: Rendered) -> None:
    """pay_svc can check orders, but not sign them; nobody but the operator reads the key of tokens."""
    for name, _, spec in defaults.pods():
        component = name.removeprefix(f"Deployment/{RELEASE}-gotohotel-")
        keys = {
            each["valueFrom"]["secretKeyRef"]["key"]
            for container in spec["containers"]
            for each in container.get("env", [])
            if "valueFrom" in each
        }
        if component in SERVICE_PARTS:
            own = {f"{component}_svc", f"{component}_svc_nats", f"{component}_svc_fingerprint"}
            shared = {"order": {"order_signing"}, "pay": {"order_signing.crt", "sandbox"}}
            allowed = own | shared.get(component, {"order_signing.crt"})
            assert keys <= allowed
        mounted = [volume["secret"] for volume in spec.get("volumes", []) if "secret" in volume]
        if any(secret["secretName"].endswith("-secrets") and "items" not in secret for secret in mounted):
            assert spec["serviceAccountName"].endswith("-operator")


def test_the_secrets_that_the_chart_makes_work(defaults: Rendered) -> None:
    """order_svc signs, others check; tokens are signed with a key that the gateway can derive from a certificate."""
    [secret] = [each for each in defaults.of("Secret") if each["metadata"]["name"].endswith("-secrets")]
    data = {key: base64.b64decode(value) for key, value in secret["data"].items()}

    assert SigningKey(data["order_signing"].decode()).public
    VerifyKey(data["order_signing.crt"].decode())
    assert tokens.public_key(data["token_key"]) == tokens.public_key(data["token_key.crt"])
    assert len({value for key, value in data.items()}) == len(data)
    assert all(len(value) >= 32 for value in data.values())
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_certificates_that_the_chart_makes_are_of_one_authority(defaults: Rendered) -> None:
    """One for each part, for its name."""
    secrets = {each["metadata"]["name"]: each["data"] for each in defaults.of("Secret")}
    prefix = f"{RELEASE}-gotohotel-tls-"
    authority = x509.load_pem_x509_certificate(base64.b64decode(secrets[f"{prefix}authority"]["tls.crt"]))
    for component in (*SERVICE_PARTS, "gateway", "egress"):
        data = {key: base64.b64decode(value) for key, value in secrets[prefix + component].items()}
        certificate = x509.load_pem_x509_certificate(data["tls.crt"])
        certificate.verify_directly_issued_by(authority)
        assert x509.load_pem_x509_certificate(data["ca.crt"]) == authority
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{component}.gotohotel"]
        key = serialization.load_pem_private_key(data["tls.key"], None)
        assert key.public_key() == certificate.public_key()


def test_only_those_who_talk_may(defaults: Rendered) -> None:
    """The pairs: whose pods may call whose."""
    labels = {name.split("/")[1].removeprefix(f"{RELEASE}-gotohotel-"): has for name, has, _ in defaults.pods()}
    talk = set()
    for policy in defaults.of("NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        callee = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
        for rule in policy["spec"].get("ingress", []):
            for peer in rule.get("from", [{"podSelector": {"matchLabels": {}}}]):
                caller = peer["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "anybody")
                talk.add((caller, callee))
    services, stores = set(SERVICE_PARTS), {"postgres", "nats"}
    assert talk == {
        ("anybody", "gateway"),
        *(("gateway", each) for each in services),
        ("order", "gateway"),
        ("reservation", "gateway"),
        *((caller, store) for caller in (*services, "operator", "toolbox") for store in stores),
    }
    assert labels


def test_the_notes_show_the_one_command_to_try(rendered: Rendered) -> None:
    """After `helm install`."""
    assert f"helm test {RELEASE} --namespace {NAMESPACE}" in rendered.notes

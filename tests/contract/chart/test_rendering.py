"""What Helm makes of the chart, path by path."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from charts import alerts, readme
from charts.dashboards import generate
from ebbtide_operator.cluster.certificates import Names
from ebbtide_operator.core import names
from ebbtide_operator.serve import admission
from ebbtide_operator.settings import OPTIONS, parse
from tests.contract.chart.rendering import (
    ALL_MONITORING,
    BARE,
    CASES,
    EXTERNAL,
    EXTERNAL_PLAIN,
    EXTERNAL_USER,
    MONITORING,
    NAMESPACE,
    PERSISTENT,
    POLICIES,
    Document,
    helm,
    kinds,
    merged,
    only,
    pod_templates,
    refusal,
    render,
    setting,
    sources,
    template,
)
from tests.unit.chart.test_values import CASES as VALUES

# Compiling Helm takes minutes where no test did it before.
pytestmark = pytest.mark.timeout(900)

CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
}


def container(found: list[Document], kind: str) -> Document:
    (one,) = only(found, kind)["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def flags(found: list[Document]) -> dict[str, str]:
    parts = [argument.removeprefix("--").partition("=") for argument in container(found, "Deployment")["args"]]
    return {name: value for name, _, value in parts}


def hooks(found: list[Document]) -> list[Document]:
    return [hook for one in found if one["kind"].endswith("WebhookConfiguration") for hook in one["webhooks"]]


def test_lint_finds_nothing() -> None:
    said = helm("lint", "--strict", str(readme.CHART)).stdout
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_complete(case: str) -> None:
    found = render(CASES[case])
    for one in found:
        what = f"{one['kind']} {one['metadata']['name']}"
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "ebbtide", what
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ebbtide", what
        assert one["metadata"].get("namespace") == (None if one["kind"] in CLUSTER_WIDE else NAMESPACE), what
    identities = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(identities) == len(set(identities))


def test_every_template_is_rendered_by_a_case() -> None:
    rendered = set[str]().union(*(sources(template(values)) for values in CASES.values()))
    files = {path.name for path in (readme.CHART / "templates").glob("*.yaml")}
    assert rendered == files


def test_rendering_twice_gives_the_same() -> None:
    assert template() == template()


# Values that say nothing by themselves, with what makes them speak.
COMPANIONS: dict[str, dict[str, Any]] = {
    "serviceAccount.create": {"serviceAccount": {"name": "mine"}},
    "etcd.persistence.storageClass": {"etcd": {"persistence": {"enabled": True}}},
    "etcd.persistence.size": {"etcd": {"persistence": {"enabled": True}}},
    "etcd.persistence.deleteOnUninstall": {"etcd": {"persistence": {"enabled": True}}},
    "etcd.external.endpoints": {"etcd": {"external": {"tlsSecret": "b"}}},
    "etcd.external.tlsSecret": EXTERNAL,
    "etcd.external.username": EXTERNAL_USER,
    "etcd.external.passwordSecret.name": EXTERNAL_USER,
    "etcd.external.passwordSecret.key": EXTERNAL_USER,
    "networkPolicy.metricsFrom": POLICIES,
    "networkPolicy.egress.enabled": {"networkPolicy": {"enabled": True}},
    "networkPolicy.egress.apiServerPorts": POLICIES,
    "networkPolicy.egress.etcdPorts": merged(POLICIES, EXTERNAL),
    "monitoring.serviceMonitor.interval": ALL_MONITORING,
    "monitoring.serviceMonitor.labels": ALL_MONITORING,
    "monitoring.podMonitor.interval": ALL_MONITORING,
    "monitoring.podMonitor.labels": ALL_MONITORING,
    "monitoring.alerts.interval": ALL_MONITORING,
    "monitoring.alerts.labels": ALL_MONITORING,
}
# Helm alone cannot show it: it looks into a cluster (test_api_server).
NEEDS_A_CLUSTER = {"allowSecondRelease"}


def _before(path: str) -> dict[str, Any]:
    companions = COMPANIONS.get(path, {})
    if path == "etcd.external.endpoints":
        return {}
    # The other name in the companion must not already be the one that is tried.
    if path in {"etcd.external.username", "etcd.external.passwordSecret.name", "etcd.external.tlsSecret"}:
        return merged(companions, setting(path, "before"))
    return companions


@pytest.mark.parametrize("path", [path for path in VALUES if path not in NEEDS_A_CLUSTER])
def test_every_value_has_an_effect(path: str) -> None:
    good, _ = VALUES[path]
    assert template(merged(COMPANIONS.get(path, {}), setting(path, good[0]))) != template(_before(path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 3}, "additional properties 'replica' not allowed"),
        ({"etcd": {"persistance": {}}}, "additional properties 'persistance' not allowed"),
        ({"defaults": {"drainTimeout": 60}}, "/defaults/drainTimeout"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name: is needed where serviceAccount.create is false"),
        (
            {"etcd": {"external": {"endpoints": ["http://a:1", "https://b:1"], "tlsSecret": "a"}}},
            "etcd.external.endpoints: mixes http and https",
        ),
        ({"etcd": {"external": {"endpoints": ["https://a:1"]}}}, "etcd.external.tlsSecret: is needed for https"),
        (merged(EXTERNAL_PLAIN, {"etcd": {"external": {"tlsSecret": "a"}}}), "etcd.external.tlsSecret: is set, but"),
        ({"etcd": {"external": {"tlsSecret": "a"}}}, "etcd.external: has credentials but no endpoints"),
        ({"etcd": {"external": {"username": "a"}}}, "etcd.external: has credentials but no endpoints"),
        (merged(EXTERNAL, {"etcd": {"external": {"username": "a"}}}), "etcd.external.passwordSecret.name: is needed"),
        (
            merged(EXTERNAL, {"etcd": {"external": {"passwordSecret": {"name": "a"}}}}),
            "etcd.external.username: is needed",
        ),
        (
            merged(EXTERNAL, {"etcd": {"persistence": {"enabled": True}}}),
            "etcd.persistence.enabled: belongs to the embedded",
        ),
        ({"networkPolicy": {"egress": {"enabled": True}}}, "networkPolicy.egress.enabled: needs networkPolicy.enabled"),
    ],
)
def test_contradictions_and_typos_are_refused_with_the_fix(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values)


def test_arguments_are_those_that_the_operator_reads() -> None:
    given = set[str]().union(*(flags(render(values)) for values in CASES.values()))
    given |= flags(render({"podEndpoints": ["https://etcd.example:2379"]})).keys()
    assert given == set(OPTIONS)


@pytest.mark.parametrize("values", [{}, EXTERNAL_PLAIN], ids=["embedded", "external"])
def test_the_operator_accepts_its_arguments(values: dict[str, Any]) -> None:
    found = render(values)
    arguments = [text.replace("$(POD_NAMESPACE)", NAMESPACE) for text in container(found, "Deployment")["args"]]
    settings = parse(arguments, {"POD_NAME": "ebbtide-0"})
    assert (settings.namespace, settings.fullname, settings.identity) == (NAMESPACE, "ebbtide", "ebbtide-0")
    assert settings.pod_endpoints == (
        f"https://{only(found, 'Service', 'ebbtide')['metadata']['name']}.{NAMESPACE}.svc:443",
    )
    ports = {port["name"]: port["containerPort"] for port in container(found, "Deployment")["ports"]}
    assert ports == {"https": settings.https_port, "http": settings.http_port}


def test_defaults_are_the_operators_own() -> None:
    assert parse([], {"POD_NAME": "a"}) == parse(
        [text.replace("$(POD_NAMESPACE)", NAMESPACE) for text in container(render(), "Deployment")["args"]],
        {"POD_NAME": "a"},
    )


def test_variables_of_the_arguments_are_defined() -> None:
    for values in CASES.values():
        for name, pod in pod_templates(render(values)):
            (one,) = pod["spec"]["containers"]
            used = set(re.findall(r"\$\((\w+)\)", " ".join(one["args"])))
            assert used <= {variable["name"] for variable in one["env"]}, name


def test_external_etcd_is_reached_with_what_is_mounted() -> None:
    found = render(EXTERNAL_USER)
    assert "StatefulSet" not in kinds(found)
    mounts = {mount["name"]: mount["mountPath"] for mount in container(found, "Deployment")["volumeMounts"]}
    assert flags(found)["etcd-endpoints"] == "https://a.example:2379"
    assert flags(found)["etcd-tls"] == mounts["etcd-tls"]
    assert flags(found)["etcd-password-file"] == f"{mounts['etcd-password']}/password"
    assert flags(render(EXTERNAL_PLAIN))["etcd-tls"] == "none"


def test_secrets_are_those_that_the_operator_makes() -> None:
    found = render(release="tides")
    made = Names("tides-ebbtide", NAMESPACE)
    (rule, _) = [rule for rule in only(found, "Role")["rules"] if rule["resources"] == ["secrets"]]
    assert set(rule["resourceNames"]) == {made.authority, *made.leaves}
    (volume,) = [
        one for one in only(found, "StatefulSet")["spec"]["template"]["spec"]["volumes"] if one["name"] == "tls"
    ]
    server = made.leaves[volume["secret"]["secretName"]]
    endpoint = flags(found)["etcd-endpoints"].removeprefix("https://").removesuffix(":2379")
    assert endpoint in server.names
    assert server.client, "etcd's gateway calls its own server"


def test_services_lead_to_pods_and_ports_that_exist() -> None:
    for values in ({}, PERSISTENT, EXTERNAL):
        found = render(values)
        pods = dict(pod_templates(found))
        for service in (one for one in found if one["kind"] == "Service"):
            targets = [
                pod for pod in pods.values() if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
            ]
            assert len(targets) == 1, service["metadata"]["name"]
            named = {port["name"] for port in targets[0]["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


def test_selectors_find_their_own_pods_only() -> None:
    found = render(POLICIES)
    pods = dict(pod_templates(found))
    assert set(pods) == {"ebbtide", "ebbtide-etcd"}
    for one in found:
        if one["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            wanted = one["spec"]["selector"]["matchLabels"].items()
            chosen = [name for name, pod in pods.items() if wanted <= pod["metadata"]["labels"].items()]
            assert chosen == [one["metadata"]["name"]]


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_an_upgrade_of_the_chart_alone_restarts_no_pod(kind: str) -> None:
    labels = only(render(), kind)["spec"]["template"]["metadata"]["labels"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & labels.keys()


def test_two_operators_stand_apart_and_go_one_at_a_time() -> None:
    found = render()
    deployment = only(found, "Deployment")["spec"]
    pod = deployment["template"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "preferredDuringSchedulingIgnoredDuringExecution" in pod["affinity"]["podAntiAffinity"]
    assert pod["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    budget = only(found, "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_the_operator_leaves_its_service_before_it_stops() -> None:
    pod = only(render(), "Deployment")["spec"]["template"]["spec"]
    pause_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    # What is left is for the operator's own end (STOP_S in app.py).
    assert pause_s + 8 < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("case", CASES)
def test_pods_keep_the_restricted_profile(case: str) -> None:
    for name, pod in pod_templates(render(CASES[case])):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert all(volume.keys() & {"emptyDir", "secret"} for volume in spec["volumes"]), name
        for one in spec["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert one["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert one["resources"]["limits"].keys() == {"memory"}, name
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= one.keys(), name


def test_only_the_operator_has_a_token() -> None:
    found = render()
    assert only(found, "ServiceAccount")["automountServiceAccountToken"] is False
    assert only(found, "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert only(found, "StatefulSet")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_roles_have_no_wildcard() -> None:
    for values in CASES.values():
        for role in (one for one in render(values) if one["kind"] in {"Role", "ClusterRole"}):
            for rule in role["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
                assert "nonResourceURLs" not in rule


def test_cluster_wide_rights_leave_out_what_is_not_ours() -> None:
    rules = only(render(), "ClusterRole", "ebbtide")["rules"]
    granted = rights(rules)
    assert not {resource for resource, _ in granted} & {
        "secrets",
        "configmaps",
        "namespaces",
        "leases",
        "serviceaccounts",
    }
    assert {verb for resource, verb in granted if resource == "pods"} == {"get", "list", "watch", "patch", "delete"}
    assert {verb for resource, verb in granted if resource in {"deployments", "replicasets"}} == {
        "get",
        "list",
        "watch",
    }
    (rule,) = [rule for rule in rules if rule["apiGroups"] == ["admissionregistration.k8s.io"]]
    assert rule["resourceNames"] == ["ebbtide"]


def rights(rules: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_without_deleting_released_pods_the_operator_has_no_right_to() -> None:
    objects = render({"deleteReleasedPods": False})
    granted = rights(only(objects, "ClusterRole", "ebbtide")["rules"])
    assert ("pods", "patch") in granted
    assert ("pods", "delete") not in granted
    (operator,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "--delete-released=false" in operator["args"]


def test_secrets_and_leases_are_named_where_rbac_can() -> None:
    for rule in only(render(), "Role")["rules"]:
        assert rule["resources"][0] in {"secrets", "leases"}
        assert "resourceNames" in rule or rule["verbs"] == ["create"]


def test_owners_of_a_namespace_see_its_drains() -> None:
    found = render()
    view = only(found, "ClusterRole", "ebbtide-drains-view")
    edit = only(found, "ClusterRole", "ebbtide-drains-edit")
    for role in ("view", "edit", "admin"):
        assert view["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    assert view["rules"] == [{"apiGroups": [names.DOMAIN], "resources": ["drains"], "verbs": ["get", "list", "watch"]}]
    assert edit["rules"][0]["verbs"] == ["delete", "deletecollection"]


def test_webhooks_never_fail_closed() -> None:
    for values in CASES.values():
        for hook in hooks(render(values)):
            assert hook["failurePolicy"] == "Ignore"
            assert hook["timeoutSeconds"] <= 3


def test_webhooks_carry_no_authority_that_an_upgrade_could_bring_back() -> None:
    assert all("caBundle" not in hook["clientConfig"] for hook in hooks(render()))


def test_webhooks_leave_the_cluster_and_the_operator_alone() -> None:
    for hook in hooks(render({"webhooks": {"excludeNamespaces": ["monitoring", "kube-system"]}})):
        (expression,) = hook["namespaceSelector"]["matchExpressions"]
        assert (expression["key"], expression["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
        assert expression["values"] == ["kube-system", "kube-node-lease", "kube-public", NAMESPACE, "monitoring"]


def test_webhooks_call_the_operator_where_it_listens() -> None:
    found = render(release="tides", namespace="elsewhere")
    paths = {}
    for hook in hooks(found):
        service = hook["clientConfig"]["service"]
        assert (service["name"], service["namespace"], service["port"]) == ("tides-ebbtide", "elsewhere", 443)
        paths[hook["rules"][0]["operations"][0]] = service["path"]
    assert paths == {"CREATE": admission.CREATE, "DELETE": admission.DELETE}


def test_the_delete_webhook_asks_about_managed_pods_and_the_controllers_that_the_operator_knows() -> None:
    hook = only(render(), "ValidatingWebhookConfiguration")["webhooks"][0]
    assert hook["objectSelector"] == {"matchLabels": {names.MANAGED: "true"}}
    assert hook["sideEffects"] == "NoneOnDryRun"
    users = set(re.findall(r'username == "([^"]+)"', str(hook["matchConditions"])))
    assert users == {names.REPLICASET_CONTROLLER, names.CONTROLLER_MANAGER}


def test_the_create_webhook_sees_what_later_webhooks_add() -> None:
    hook = only(render(), "MutatingWebhookConfiguration")["webhooks"][0]
    assert (hook["reinvocationPolicy"], hook["sideEffects"]) == ("IfNeeded", "None")


def test_etcd_needs_a_client_certificate_and_shows_plain_http_only_its_health() -> None:
    etcd = container(render(), "StatefulSet")
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in etcd["args"])
    assert arguments["client-cert-auth"] == "true"
    assert arguments["listen-client-urls"].startswith("https://")
    assert arguments["listen-peer-urls"] == "http://127.0.0.1:2380"
    assert {probe["httpGet"]["port"] for name, probe in etcd.items() if name.endswith("Probe")} == {"metrics"}
    mounts = [mount["mountPath"] for mount in etcd["volumeMounts"]]
    assert any(arguments["data-dir"].startswith(f"{path}/") for path in mounts)
    assert all(arguments[name].startswith("/etc/etcd/tls/") for name in ("trusted-ca-file", "cert-file", "key-file"))


def test_an_etcd_that_begins_empty_has_an_id_that_none_had_before() -> None:
    etcd = container(render(), "StatefulSet")
    assert "--initial-cluster-token=$(POD_UID)" in etcd["args"]
    uid = next(one for one in etcd["env"] if one["name"] == "POD_UID")
    assert uid["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"


def test_etcd_has_a_volume_only_where_it_is_wanted() -> None:
    plain = only(render(), "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in plain
    assert "emptyDir" in next(volume for volume in plain["template"]["spec"]["volumes"] if volume["name"] == "data")
    kept = only(render(PERSISTENT), "StatefulSet")["spec"]
    assert kept["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
    assert kept["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    assert [volume["name"] for volume in kept["template"]["spec"]["volumes"]] == ["tls"]


def test_etcds_quota_fits_its_memory_and_is_no_float() -> None:
    arguments = " ".join(container(render(), "StatefulSet")["args"])
    assert "--quota-backend-bytes=536870912" in arguments
    assert "--quota-backend-bytes=8589934592" in template({"etcd": {"quotaBytes": 8589934592}})


def test_network_policies_let_only_the_operator_reach_etcd() -> None:
    found = render(POLICIES)
    policy = only(found, "NetworkPolicy", "ebbtide-etcd")["spec"]
    client = next(rule for rule in policy["ingress"] if rule["ports"] == [{"port": "client"}])
    assert client["from"] == [{"podSelector": only(found, "Deployment")["spec"]["selector"]}]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    operator = only(found, "NetworkPolicy", "ebbtide")["spec"]
    assert {port["port"] for rule in operator["ingress"] for port in rule["ports"]} == {"https", "http"}
    assert {port["port"] for rule in operator["egress"] for port in rule["ports"]} == {53, 443, 6443, "client"}
    assert "NetworkPolicy" not in kinds(render())


@pytest.mark.parametrize(
    ("enabled", "apis", "shown"),
    [
        ("auto", MONITORING, True),
        ("auto", (), False),
        ("always", (), True),
        ("never", MONITORING, False),
    ],
)
def test_monitors_are_there_where_the_cluster_knows_them(enabled: str, apis: tuple[str, ...], shown: bool) -> None:
    values = {"monitoring": {name: {"enabled": enabled} for name in ("serviceMonitor", "podMonitor", "alerts")}}
    found = render(values, apis=apis)
    assert bool({"ServiceMonitor", "PodMonitor", "PrometheusRule"} & kinds(found)) is shown
    assert ({"ServiceMonitor", "PodMonitor", "PrometheusRule"} <= kinds(found)) is shown
    for _, pod in pod_templates(found):
        # One way to be scraped, never two: every series would be there twice.
        assert ("prometheus.io/scrape" in pod["metadata"]["annotations"]) is not shown


def test_the_service_monitor_finds_both_metrics_services_and_keeps_our_labels() -> None:
    found = render(ALL_MONITORING)
    spec = only(found, "ServiceMonitor")["spec"]
    wanted = spec["selector"]["matchLabels"].items()
    services = [one for one in found if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()]
    assert {one["metadata"]["name"] for one in services} == {"ebbtide-metrics", "ebbtide-etcd-metrics"}
    for service in services:
        assert [port["name"] for port in service["spec"]["ports"]] == [
            endpoint["port"] for endpoint in spec["endpoints"]
        ]
    assert spec["endpoints"][0]["honorLabels"] is True


def test_the_alerts_arrive_as_they_were_generated_with_prometheus_placeholders_in_place() -> None:
    spec = only(render(ALL_MONITORING), "PrometheusRule")["spec"]
    assert spec == {"groups": [{"name": name, "rules": alerts.rules(group)} for name, group in alerts.GROUPS.items()]}
    assert "{{ $labels.pod }}" in spec["groups"][0]["rules"][1]["annotations"]["summary"]


def test_the_dashboard_arrives_as_it_was_generated() -> None:
    (text,) = only(render(), "ConfigMap")["data"].values()
    assert text == generate.OUTPUT.read_text().strip()
    assert only(render(), "ConfigMap")["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_definition_is_kept_on_uninstall_unless_told_otherwise() -> None:
    kept = only(render(), "CustomResourceDefinition")
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    gone = only(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    source = yaml.safe_load((readme.CHART.parents[1] / "crds/ebbtide.dev_drains.yaml").read_text())
    assert kept["spec"] == source["spec"]


def test_two_releases_share_no_object() -> None:
    def identities(release: str, namespace: str) -> set[tuple[str, str, str]]:
        found = render({"crds": {"enabled": False}}, release=release, namespace=namespace)
        return {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in found}

    assert not identities("ebbtide", "a") & identities("tides", "b")
    assert not identities("ebbtide", "a") & identities("tides", "a")


def test_long_release_names_leave_room_for_suffixes() -> None:
    for one in render(release="a" * 53):
        assert len(one["metadata"]["name"]) <= 63
    assert len(only(render(release="a" * 53), "StatefulSet")["metadata"]["name"] + "-1234567890") <= 63


@pytest.mark.parametrize(
    ("values", "said", "unsaid"),
    [
        ({}, ["kubectl get drains", "no volume"], ["replicas is 1", "without TLS"]),
        (PERSISTENT, [], ["WARNING"]),
        (EXTERNAL_PLAIN, ["reached without TLS"], ["no volume"]),
        (BARE, ["replicas is 1", "crds.enabled is false"], []),
    ],
)
def test_notes_say_what_to_do_next_and_what_to_mind(values: dict[str, Any], said: list[str], unsaid: list[str]) -> None:
    notes = helm("install", "ebbtide", str(readme.CHART), "--dry-run=client", values=values).stdout.partition("NOTES:")[
        2
    ]
    assert [text for text in said if text not in notes] == []
    assert [text for text in unsaid if text in notes] == []


def test_an_old_kubernetes_is_refused() -> None:
    done = helm("template", "ebbtide", str(readme.CHART), "--kube-version", "1.29.9", check=False)
    assert "kubeVersion" in done.stderr
    helm("template", "ebbtide", str(readme.CHART), "--kube-version", "v1.30.0-gke.100")

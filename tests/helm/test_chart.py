"""The Helm chart: rendered by Helm itself, held against Kubernetes' schemas, and run as processes.

There is no cluster here. Helm's own library lints and renders; what comes out is validated strictly
by the schemas of the oldest and the newest Kubernetes; and the commands, variables and files of the
containers are tried on this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import redis
import yaml  # type: ignore[import-untyped]

from aigateway.settings import GatewaySettings, ServerSettings
from aigateway.simulator import Simulator
from tests.docs.pages import blocks
from tests.fleet.servers import VALKEY, Server, free_port
from tests.processes import PATIENCE, ROOT, until

CHART = ROOT / "deploy/helm/aigateway"
KUBERNETES = ("1.27", "1.37")
NO_SCHEMA = {
    "PrometheusRule",
    "ServiceMonitor",
}  # of the Prometheus operator, which Kubernetes does not know
KEY = "vendor-key-1234567890"
CONFIG = '[[server.keys]]\nname = "web"\nsha256 = "' + "0" * 64 + '"\nbudget_usd = 20.0\n'
GIVEN: dict[str, Any] = {
    "image": {"repository": "registry.example/aigateway"},
    "config": CONFIG,
    "secrets": {"existing": ["vendors"]},
}
ON = {"enabled": True}
OFF = {"enabled": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "keys in values": {"secrets": {"existing": [], "values": {"OPENAI_API_KEY": KEY}}},
    "external redis": {"redis": {"url": f"rediss://bob:{KEY}@redis.example:6379/0"}},
    "redis from a secret": {"redis": {"existingSecret": "redis", "fleetName": "both"}},
    "no redis": {"valkey": OFF, "autoscaling": OFF, "replicaCount": 1},
    "fixed replicas": {"autoscaling": OFF, "replicaCount": 5},
    "volume": {"autoscaling": OFF, "replicaCount": 1, "state": {"persistence": ON}},
    "everything": {
        "fullnameOverride": "x" * 60,
        "autoscaling": {
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": "aigateway_in_flight"},
                        "target": {"type": "AverageValue", "averageValue": "200"},
                    },
                }
            ]
        },
        "env": [{"name": "AIGATEWAY_TIMEOUT", "value": "20"}],
        "imagePullSecrets": [{"name": "pull"}],
        "ingress": {
            **ON,
            "className": "nginx",
            "hosts": ["llm.example"],
            "tls": [{"secretName": "llm-tls", "hosts": ["llm.example"]}],
            "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
        },
        "networkPolicy": {**ON, "from": [{"namespaceSelector": {}}], "egress": [{"to": []}]},
        "nodeSelector": {"pool": "llm"},
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "priorityClassName": "high",
        "service": {"type": "LoadBalancer", "annotations": {"e": "f"}},
        "serviceAccount": {"annotations": {"g": "h"}},
        "serviceMonitor": {**ON, "keySecret": {"name": "metrics"}, "labels": {"release": "p"}},
        "prometheusRule": {**ON, "labels": {"release": "p"}},
        "tolerations": [{"key": "llm", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "valkey": {"persistence": {**ON, "storageClass": "fast"}, "nodeSelector": {"pool": "x"}},
    },
}


def render(given: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the manifests by kind and by what their names end with."""
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(given, name="demo", namespace="prod")
    found = {}
    for path, text in texts.items():
        if path.endswith(".yaml"):
            for each in filter(None, yaml.safe_load_all(text)):
                name = "valkey" if each["metadata"]["name"].endswith("-valkey") else "service"
                assert (each["kind"], name) not in found
                found[each["kind"], name] = each
    return found


def pod(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the specification of the pods, and of their one container."""
    spec = manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables whose values the manifest itself says."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def values(request):
    return GIVEN | VARIANTS[request.param]


@pytest.fixture
def rendered(values):
    return render(values)


@pytest.fixture
def deployment(rendered):
    return rendered["Deployment", "service"]


def test_the_linter_finds_nothing(values):
    report = helm_python.lint(str(CHART), values, strict=True)
    assert not report["errors"]
    assert not [each for each in report["messages"] if each["error"] != "icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(rendered, version):
    for (kind, _), manifest in rendered.items():
        if kind not in NO_SCHEMA:
            kubernetes_validate.validate(manifest, version, strict=True)
        labels = manifest["metadata"]["labels"]
        assert all(len(value) <= 63 for value in labels.values())
        assert len(manifest["metadata"]["name"]) <= 52  # pods of a StatefulSet add a hash to it


def test_probes_and_drain_leave_time_to_finish(deployment):
    spec, container = pod(deployment)
    told = variables(container)
    settings = ServerSettings(
        drain_seconds=float(told["AIGATEWAY_SERVER_DRAIN_SECONDS"]),
        drain_notice_seconds=float(told["AIGATEWAY_SERVER_DRAIN_NOTICE_SECONDS"]),
    )
    assert spec["terminationGracePeriodSeconds"] > settings.drain_seconds + 5
    readiness = container["readinessProbe"]
    noticed = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert settings.drain_notice_seconds > noticed
    assert readiness["httpGet"] == {"path": "/ready?process=true", "port": "http"}
    for name in ("livenessProbe", "startupProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": "http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120


def test_containers_may_do_no_more_than_they_need(rendered):
    for kind, name in rendered.keys() & {("Deployment", "service"), ("StatefulSet", "valkey")}:
        spec, container = pod(rendered[kind, name])
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]["cpu"]
        assert container["resources"]["limits"]["memory"]
    assert rendered["ServiceAccount", "service"]["automountServiceAccountToken"] is False


def test_keys_are_in_secrets_only(rendered):
    for (kind, _), manifest in rendered.items():
        assert kind == "Secret" or KEY not in yaml.safe_dump(manifest)


def test_the_image_and_the_chart_agree(deployment):
    spec, container = pod(deployment)
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = spec["securityContext"]["runAsUser"]
    assert f"USER {user}:{spec['securityContext']['runAsGroup']}" in dockerfile
    assert f"AIGATEWAY_SERVER_PORT={container['ports'][0]['containerPort']} " in dockerfile
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    state = variables(container)["AIGATEWAY_SERVER_STATE_DIR"]
    assert f"AIGATEWAY_SERVER_STATE_DIR={state}" in dockerfile
    assert mounts.keys() == {"/etc/aigateway", state, "/tmp"}
    assert "WORKDIR /etc/aigateway" in dockerfile
    assert not [mount for mount in mounts.values() if "subPath" in mount]
    assert {m["name"] for m in mounts.values()} == {v["name"] for v in spec["volumes"]}


def test_selectors_find_what_they_are_for(rendered):
    pods = {
        name: rendered[kind, name]["spec"]["template"]["metadata"]["labels"]
        for kind, name in rendered
        if kind in {"Deployment", "StatefulSet"}
    }
    for (kind, name), manifest in rendered.items():
        spec = manifest.get("spec", {})
        if kind == "Service":
            selector = spec["selector"]
        elif kind in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            selector = spec["selector"]["matchLabels"]
        elif kind == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        else:
            continue
        assert [each for each in pods if selector.items() <= pods[each].items()] == [name], kind


def environment(rendered: dict[tuple[str, str], dict[str, Any]]) -> dict[str, str]:
    """Return the variables of the service as the kubelet makes them, Secrets included."""
    secrets = {m["metadata"]["name"]: m for (kind, _), m in rendered.items() if kind == "Secret"}
    _, container = pod(rendered["Deployment", "service"])
    found: dict[str, str] = {}
    for each in container.get("envFrom", ()):
        found |= secrets.get(each["secretRef"]["name"], {}).get("stringData", {})
    for each in container["env"]:
        reference = each.get("valueFrom", {}).get("secretKeyRef", {})
        from_secret = "redis://of-a-secret" if reference.get("key") == "redis-url" else "secret"
        value = each.get("value", from_secret)
        found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], value)
    return found


def test_pods_start_with_what_the_chart_gives_them(request, rendered, monkeypatch, tmp_path):
    """The service itself reads the file and the variables: none is unknown, none is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIGATEWAY_SERVER_HOST", "0.0.0.0")
    for name, value in environment(rendered).items():
        monkeypatch.setenv(name, value)
    text = rendered["ConfigMap", "service"]["data"]["aigateway.toml"]
    Path("aigateway.toml").write_text(text)
    server, gateway = ServerSettings.load(), GatewaySettings.load()
    assert [key.name for key in server.keys] == ["web"]
    assert not server.is_local
    urls = {
        "external-redis": f"rediss://bob:{KEY}@redis.example:6379/0",
        "redis-from-a-secret": "redis://of-a-secret",
        "everything": f"redis://:secret@{'x' * 40}-valkey:6379/0",
    }
    variant = request.node.callspec.id
    if variant == "no-redis":
        assert gateway.redis_url is None
    else:
        assert gateway.redis_url is not None
        url = urls.get(variant, "redis://:secret@demo-aigateway-valkey:6379/0")
        assert gateway.redis_url.get_secret_value() == url
        names = {"redis-from-a-secret": "both", "everything": f"prod.{'x' * 40}"}
        assert gateway.fleet_name == names.get(variant, "prod.demo-aigateway")


@pytest.mark.parametrize(
    ("variant", "kinds"),
    [
        ("default", {"HorizontalPodAutoscaler", "PodDisruptionBudget"}),
        ("fixed replicas", {"PodDisruptionBudget"}),
        ("volume", {"PodDisruptionBudget", "PersistentVolumeClaim"}),
        (
            "everything",
            {"HorizontalPodAutoscaler", "PodDisruptionBudget", "Ingress", "ServiceMonitor"}
            | {"NetworkPolicy", "PrometheusRule"},
        ),
    ],
)
def test_what_is_switched_on_is_there(variant, kinds):
    rendered = render(GIVEN | VARIANTS[variant])
    always = {"ConfigMap", "Deployment", "Service", "ServiceAccount"}
    assert {kind for kind, name in rendered if name == "service"} == always | kinds


def test_the_alerts_are_those_of_prometheus():
    rule = render(GIVEN | VARIANTS["everything"])["PrometheusRule", "service"]
    assert rule["metadata"]["labels"]["release"] == "p"
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())


def test_replicas_are_the_autoscalers_where_there_is_one():
    assert "replicas" not in render(GIVEN)["Deployment", "service"]["spec"]
    fixed = render(GIVEN | VARIANTS["fixed replicas"])["Deployment", "service"]
    assert fixed["spec"]["replicas"] == 5


def test_one_pod_at_a_time_has_the_volume():
    manifest = render(GIVEN | VARIANTS["volume"])["Deployment", "service"]
    assert manifest["spec"]["strategy"] == {"type": "Recreate"}
    assert {"name": "state", "persistentVolumeClaim": {"claimName": "demo-aigateway-state"}} in (
        pod(manifest)[0]["volumes"]
    )


class TestRedis:
    @pytest.mark.parametrize("variant", ["external redis", "redis from a secret", "no redis"])
    def test_valkey_runs_only_where_no_other_is(self, variant):
        assert not [name for _, name in render(GIVEN | VARIANTS[variant]) if name == "valkey"]

    def test_the_password_is_the_same_in_service_and_valkey(self):
        rendered = render(GIVEN)
        sources = [
            {each["name"]: each.get("valueFrom") for each in pod(rendered[which])[1]["env"]}
            for which in (("Deployment", "service"), ("StatefulSet", "valkey"))
        ]
        assert sources[0]["VALKEY_PASSWORD"] == sources[1]["VALKEY_PASSWORD"]
        secret = rendered["Secret", "valkey"]
        reference = sources[0]["VALKEY_PASSWORD"]["secretKeyRef"]
        assert reference == {"name": secret["metadata"]["name"], "key": "valkey-password"}
        assert len(secret["data"]["valkey-password"]) > 40

    def test_an_existing_password_is_used(self):
        rendered = render(GIVEN | {"valkey": {"existingSecret": "mine"}})
        assert ("Secret", "valkey") not in rendered
        (reference,) = [
            each["valueFrom"]["secretKeyRef"]["name"]
            for each in pod(rendered["StatefulSet", "valkey"])[1]["env"]
        ]
        assert reference == "mine"

    def test_another_url_takes_new_pods(self):
        def checksum(url):
            template = render(GIVEN | {"redis": {"url": url}})["Deployment", "service"]["spec"]
            return template["template"]["metadata"]["annotations"]["checksum/secret"]

        assert checksum("redis://a") == checksum("redis://a") != checksum("redis://b")

    @pytest.mark.parametrize("variant", ["default", "everything"])
    def test_its_command_runs(self, variant, tmp_path):
        """The container's own command, with a free port and a directory of this machine."""
        _, container = pod(render(GIVEN | VARIANTS[variant])["StatefulSet", "valkey"])
        (tmp_path / "valkey-server").symlink_to(VALKEY)
        port = free_port()
        *shell, script = container["command"]
        script = script.replace("6379", str(port)).replace("/data", str(tmp_path))
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VALKEY_PASSWORD": "secret"}
        with subprocess.Popen([*shell, script], env=env, stdout=subprocess.DEVNULL) as process:
            try:
                server = Server(tmp_path)
                server.port = port
                until(lambda: process.poll() is not None or _answers(server))
                assert server("CONFIG GET", "maxmemory-policy", password="secret") == {
                    "maxmemory-policy": "volatile-lru"
                }
                assert Path(f"/proc/{process.pid}/exe").resolve() == Path(VALKEY).resolve()
                assert b"secret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
                process.send_signal(signal.SIGTERM)  # the server itself gets it, not a shell
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
        assert (tmp_path / "appendonlydir").exists() == (variant == "everything")


def _answers(server: Server) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(server("PING", password="secret"))
    return False


def test_keys_may_come_from_the_environment():
    source = {"secretKeyRef": {"name": "keys", "key": "json"}}
    env = [{"name": "AIGATEWAY_SERVER_KEYS", "valueFrom": source}]
    rendered = render(GIVEN | {"config": "", "env": env})
    assert env[0] in pod(rendered["Deployment", "service"])[1]["env"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image": {}}, "image.repository: build the image"),
    ({"config": ""}, "aigateway key --name"),
    ({"config": "[server"}, "config: is not valid TOML"),
    ({"secrets": {}}, "no provider"),
    ({"config": CONFIG + '[[providers]]\napi_key = "x"'}, "no place for keys"),
    ({"config": "[server]\ndrain_seconds = 5\n" + CONFIG}, "use drain.seconds"),
    ({"config": '[server]\nhost = "::"\n' + CONFIG}, "listens on all addresses"),
    ({"config": '[gateway]\nredis_url = "redis://x"\n' + CONFIG}, "use redis.url"),
    ({"redis": {"url": "redis://x", "existingSecret": "y"}}, "give one"),
    ({"redis": {"url": "http://x"}}, "/redis/url"),
    ({"drain": {"noticeSeconds": 6}}, "make it more than the 6 seconds"),
    ({"drain": {"seconds": 10}}, "more than drain.noticeSeconds"),
    ({"state": {"persistence": ON}}, "takes exactly one pod"),
    ({"resources": {"requests": {"cpu": None}}}, "resources.requests.cpu; set it"),
    ({"serviceMonitor": ON}, "serviceMonitor.keySecret.name"),
    ({"ingress": ON}, "ingress.hosts"),
    ({"replicaCout": 3}, "replicaCout"),
    ({"autoscaling": {"minReplicas": "2"}}, "/autoscaling/minReplicas"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_work_is_refused_before_it_is_installed(wrong, message):
    with pytest.raises(helm_python.HelmError) as error:
        render(GIVEN | wrong)
    assert message in str(error.value)


def test_a_pod_serves(launch, tmp_path):
    """The service starts with the file and the variables of a pod, beside the chart's Valkey."""
    with Simulator.in_thread() as simulator, Server(tmp_path) as valkey:
        valkey("CONFIG", "SET", "requirepass", "secret")
        vendor = simulator.vendor("openai")
        rendered = render(GIVEN | {"secrets": {"values": {"OPENAI_API_KEY": vendor.key}}})
        env = environment(rendered)
        for inside, here in (
            ("demo-aigateway-valkey:6379", f"127.0.0.1:{valkey.port}"),
            ("/var/lib/aigateway", str(tmp_path)),
        ):
            env = {name: value.replace(inside, here) for name, value in env.items()}
        env |= {"AIGATEWAY_SERVER_HOST": "127.0.0.1", "OPENAI_BASE_URL": vendor.api_base}
        directory = tmp_path / "etc"
        directory.mkdir()
        text = rendered["ConfigMap", "service"]["data"]["aigateway.toml"]
        (directory / "aigateway.toml").write_text(text)
        service = launch(directory, "serve", "--log-format", "json", "--port", "0", env=env)
        for path in ("health", "ready?process=true"):
            with urllib.request.urlopen(f"{service.url}/{path}") as answer:
                assert answer.status == 200
        until(lambda: valkey("INFO", "stats", password="secret")["total_commands_processed"] > 20)
        for _ in range(2):  # the second one does not wait for load balancers
            service.signal(signal.SIGTERM)
        assert service.code == 0, service.log


@pytest.mark.parametrize("block", blocks("yaml", "docs/guides/kubernetes.md"), ids=str)
def test_the_values_of_the_guide_work(block):
    given = yaml.safe_load(block.text)
    assert render(given if "image" in given else GIVEN | given)


def test_the_examples_of_the_values_work():
    """The lines of `values.yaml` that are comments are settings, too."""
    text = (CHART / "values.yaml").read_text()
    lines = text.partition("#   config: |\n")[2].partition("\nconfig:")[0].splitlines()
    toml = "\n".join(line.removeprefix("#     ") for line in lines)
    assert tomllib.loads(toml)["server"]["keys"][0]["budget_usd"] == 20.0

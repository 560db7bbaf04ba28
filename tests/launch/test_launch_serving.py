"""What puts servers and gateways on clusters: objects of Kubernetes, and their image."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_server
import yaml
from command_runs import run

from mdlm_jax.serving.api import server
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.gateway import regions
from mdlm_jax.serving.offering.offers import Fixed

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
IMAGE = (LAUNCH / "serve.Dockerfile").read_text()
PARTS = ("serve", "gateway")
OLDEST = "1.33"  # Kubernetes that has all of it

every_part = pytest.mark.parametrize("part", PARTS)


def objects(part):
    """By their kind."""
    read = [*yaml.safe_load_all((LAUNCH / f"gke_{part}.yaml").read_text())]
    found = {each["kind"]: each for each in read}
    assert len(found) == len(read)
    return found


def pod(part):
    template = objects(part)["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return template, container


def flags(container):
    return dict(flag.removeprefix("--").split("=") for flag in container["args"])


@every_part
def test_the_objects_have_the_shape_of_their_apis(part):
    validate = pytest.importorskip("kubernetes_validate").validate
    kinds = {kind: each for kind, each in objects(part).items() if kind != "PodMonitoring"}
    for each in kinds.values():
        validate(each, OLDEST, strict=True)
    assert {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"} <= {*kinds}


def test_the_check_of_the_shape_can_fail():
    check = pytest.importorskip("kubernetes_validate")
    deployment = objects("serve")["Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["lifecycle"]["preStop"]["sleep"]["second"] = 1
    with pytest.raises(check.ValidationError, match="second"):
        check.validate(deployment, OLDEST, strict=True)


@every_part
def test_the_command_has_the_flags(part):
    _, container = pod(part)
    command = ["python", "-m", f"mdlm_jax.{part}"]
    assert container["command"] == command
    run(part, *container["args"], "--only_check_args")


def test_the_check_of_flags_can_fail():
    assert (
        "Unknown command line flag"
        in run("gateway", "--prot=1", "--only_check_args", code=2).stderr
    )


@every_part
def test_names_lead_to_what_they_name(part):
    all_of, (template, container) = objects(part), pod(part)
    label, name = {"app": f"mdlm-{part}"}, f"mdlm-{part}"
    assert template["metadata"]["labels"] == label == all_of["Service"]["spec"]["selector"]
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitoring"):
        assert all_of[kind]["spec"]["selector"] == {"matchLabels": label}
    scaled = all_of["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == (
        "Deployment",
        all_of["Deployment"]["metadata"]["name"],
    )
    assert "replicas" not in all_of["Deployment"]["spec"]  # they are the autoscaler's
    (port,) = container["ports"]
    assert str(port["containerPort"]) == flags(container)["port"]
    probes = [container[f"{each}Probe"]["httpGet"] for each in ("startup", "readiness", "liveness")]
    (served,), (scraped,) = (
        all_of["Service"]["spec"]["ports"],
        all_of["PodMonitoring"]["spec"]["endpoints"],
    )
    named = [served["targetPort"], scraped["port"], *(probe["port"] for probe in probes)]
    assert {*named} == {port["name"]} and scraped["path"] == "/metrics"
    assert [probe["path"] for probe in probes[1:]] == ["/readyz", "/healthz"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert {*mounts} == {each["name"] for each in template["spec"]["volumes"]}
    assert flags(container)["keys"] == f"{mounts['keys']}/keys"
    assert (
        name == all_of["Service"]["metadata"]["name"] == all_of["PodMonitoring"]["metadata"]["name"]
    )


@every_part
def test_there_is_time_to_drain(part):
    template, container = pod(part)
    given = flags(container)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    unready = container["readinessProbe"]["periodSeconds"] * 2
    needed = pause + float(given["drain"]) + server.FAREWELL
    assert template["spec"]["terminationGracePeriodSeconds"] >= needed + 5 and pause > unready
    longest = given["timeout"] if part == "serve" else regions.Limits().deadline_s
    assert float(given["drain"]) >= float(longest)


def test_the_regions_can_be_read(tmp_path):
    config, (template, container) = objects("gateway")["ConfigMap"], pod("gateway")
    mounted = {each["name"]: each for each in template["spec"]["volumes"]}["regions"]
    assert mounted["configMap"]["name"] == config["metadata"]["name"]
    name = flags(container)["regions"].removeprefix("/etc/mdlm/regions/")
    (tmp_path / name).write_text(config["data"][name])
    first, *others = regions.read(str(tmp_path / name)).regions
    assert first.url == f"http://{objects('serve')['Service']['metadata']['name']}" and others
    assert objects("serve")["Service"]["spec"]["ports"][0]["port"] == 80


def test_the_autoscaler_looks_at_what_a_server_tells(told):
    (metric,) = objects("serve")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    named = metric["external"]["metric"]
    place, name, kind = named["name"].split("|")
    assert (place, kind) == ("prometheus.googleapis.com", "gauge") and name in told
    job = objects("serve")["PodMonitoring"]["metadata"]["name"]
    assert named["selector"]["matchLabels"]["resource.labels.job"] == job


def test_the_image_runs_the_server_as_no_root():
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", IMAGE, re.M)
    python, flag, module, *arguments = json.loads(entry)
    assert (python, flag) == ("python", "-m")
    run(module.removeprefix("mdlm_jax."), *arguments, "--workdir=/runs/x", "--only_check_args")
    users = re.findall(r"^USER (\d+)$", IMAGE, re.M)
    assert users == [
        str(pod(part)[0]["spec"]["securityContext"]["runAsUser"]) for part in ("serve",)
    ]
    assert f"--uid {users[0]}" in IMAGE


def test_the_image_looks_after_its_health():
    (command,) = re.findall(r"^HEALTHCHECK .*\n +CMD (.*)$", IMAGE, re.M)
    _, *arguments = json.loads(command)
    with tiny_server.answering(Engine(), Fixed({})) as running:
        port = running.address.rpartition(":")[2]
        assert arguments[1].count("localhost:8000/") == 1
        look = [sys.executable, *(each.replace("8000", port) for each in arguments)]
        assert subprocess.run(look, check=False).returncode == 0
    assert subprocess.run(look, check=False, capture_output=True).returncode == 1

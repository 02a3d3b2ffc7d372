"""The smoke pipeline in containers: a verdict, the same numbers as without them, and a server of the promoted package."""

import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from common.files import read_json
from emuflow_client import GeneratorClient
from pipelines.steps import STEPS
from tests.containers.conftest import IMAGES, containers_of_runs, health_check
from tests.pipelines.chain import Chain

pytestmark = pytest.mark.containers

WITH_A_SERVER = {"export", "benchmark"}
DIGESTS = {
    "samples/summary.json": ("table_sha256", "evaluation_digest", "quarantined"),
    "curated/report.json": ("table_sha256", "dropped"),
    "evaluation_set/evaluation.json": ("digest",),
    "tokenizers/tokenizers.json": ("digest",),
    "shards/shards.json": ("sha256", "tokenizers_digest"),
}


def test_the_run_comes_to_a_verdict(containerised):
    run = containerised.status()["last_run"]
    assert run["status"] == "succeeded" and run["verdict"]["result"] == "PASS", run["verdict"]["reasons"]
    assert containerised.status()["champion"]["digest"] == run["candidate"]


def test_no_step_is_root_or_may_change_the_system_it_runs_on(containerised):
    around = {name: containerised.step(name)["surroundings"] for name in STEPS}
    assert {name for name in STEPS if around[name]["user"] == 0} == set()
    assert {name for name in STEPS if not around[name]["read_only_root"]} == set()


def test_each_step_ran_in_its_image_named_by_what_it_is(engine, containerised):
    images = {name: containerised.step(name)["surroundings"]["image"] for name in STEPS}
    identity = {name: engine.images.get(tag).id for name, tag in IMAGES.items()}
    for step, image in images.items():
        name = "emuflow-triton" if step in WITH_A_SERVER else "emuflow"
        assert image == f"localhost/{name}@{identity[name]}".replace("@", f":{IMAGES[name].rpartition(':')[2]}@"), step


def test_the_package_leads_back_to_the_image(engine, containerised):
    candidate = containerised.status()["champion"]["digest"]
    provenance = read_json(containerised.home / "packages" / candidate / "manifest.json")["provenance"]
    assert provenance["image_digest"] == engine.images.get(IMAGES["emuflow"]).id
    assert provenance["server_image_digest"] == engine.images.get(IMAGES["emuflow-triton"]).id
    assert provenance["git_commit"] == engine.images.get(IMAGES["emuflow"]).labels["org.opencontainers.image.revision"]


def test_the_data_are_the_same_as_without_containers(containerised, local):
    for file, keys in DIGESTS.items():
        found = [read_json(chain.run_folder() / file) for chain in (containerised, local)]
        for key in keys:
            assert found[0][key] == found[1][key], f"{file}: {key}"


def test_the_losses_are_the_same_as_without_containers(containerised, local):
    curves, heldout = [], []
    for chain in (containerised, local):
        folder = chain.run_folder() / "checkpoint"
        lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
        curves.append([[value for name, value in line.items() if name.endswith("loss")] for line in lines])
        heldout.append(read_json(folder / "training.json")["heldout_loss_per_sample"])
    assert len(curves[0]) > 3 and len(heldout[0]) >= 32
    np.testing.assert_allclose(curves[0], curves[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(heldout[0], heldout[1], rtol=0, atol=1e-5)


def test_the_memory_of_the_containers_counts(containerised, local):
    peaks = [chain.status()["last_run"]["peak_memory_mb"] for chain in (containerised, local)]
    assert peaks[0] > 0.5 * peaks[1]


def test_who_started_the_run_is_who_promoted(containerised, local):
    assert containerised.status()["champion"]["actor"] == local.status()["champion"]["actor"]


def test_no_container_is_left(engine, containerised):
    assert containers_of_runs(engine) == []


@pytest.fixture
def server(engine, containerised: Chain):
    """The champion's server in a container: a read-only root, the home mounted, one port published on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = containerised.home
    container = engine.containers.run(
        IMAGES["emuflow-triton"],
        detach=True,
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        shm_size="256m",
        user="10001:10001",
        volumes={str(home): {"bind": "/emuflow", "mode": "rw"}},
        ports={"8001/tcp": ("127.0.0.1", port)},
        healthcheck={"test": ["NONE"]},
    )
    yield container, f"127.0.0.1:{port}"
    container.remove(force=True)


def test_the_server_container_answers_from_the_promoted_package(engine, containerised, server):
    container, endpoint = server
    deadline = time.monotonic() + 60
    while "Serving" not in container.logs().decode():
        assert time.monotonic() < deadline, container.logs().decode()
        time.sleep(0.2)
    assert container.exec_run(health_check(engine)).exit_code == 0
    assert container.exec_run(["id", "-u"]).output.strip() == b"10001"
    with GeneratorClient(endpoint, timeout_s=30) as client:
        answer = client.generate("a red seven left of a green two", seed=5)
        again = client.generate("a red seven left of a green two", seed=5)
    assert answer.image.shape == (64, 64, 3) and answer.image.std() > 0
    assert (answer.image == again.image).all()
    assert answer.version == containerised.status()["champion"]["digest"]
    assert containerised.status()["serving"]["digest"] == answer.version
    assert "a server runs here already" in containerised.call("serve", "--grpc-port", "0", code=1)
    assert "runs in a container" in containerised.call("generate", "a red seven", "-o", "unused.png", code=2)
    started = time.monotonic()
    container.stop(timeout=20)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0 and time.monotonic() - started < 15, container.logs().decode()
    assert not (Path(containerised.home) / "serving" / "state.json").exists()

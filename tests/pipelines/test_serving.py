"""`emuflow serve` and `emuflow generate`, on a home whose packages stand there already."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from common.files import read_json
from common.home import Home
from emuflow_client import GeneratorClient
from serving.deployment import read_state, reconcile_if_running
from serving.release.store import ReleaseStore
from serving.server import TritonServer
from tests.engines import write_engine
from tests.packages import build
from tests.pipelines.chain import Chain
from tests.serving.served import eventually

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with two packages; the INT8 one is the champion."""
    home = Home(tmp_path_factory.mktemp("served") / "runs")
    engine = write_engine(home.root.parent / "engine")
    int8, _ = (build(engine, home.packages, home.keys, precision) for precision in ("int8", "fp32"))
    promote(home, int8.name, None)
    return home


@pytest.fixture(scope="module")
def server(place: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(tmp_path_factory.mktemp("triton"), place.keys, stop_grace_s=0) as running:
        yield running


def promote(home: Home, digest: str, expected: str | None) -> None:
    store = ReleaseStore(home.release_url, home.keys)
    store.promote("champion", digest, expected_current=expected, evidence_digest=None, actor="test", reason="PASS")
    store.close()


def packages(home: Home) -> tuple[str, str]:
    """The champion and the other package."""
    champion = ReleaseStore(home.release_url).current()
    assert champion is not None
    (other,) = {path.name for path in home.packages.iterdir()} - {champion.digest}
    return champion.digest, other


@contextmanager
def serving(home: Home, *arguments: str) -> Iterator[None]:
    process = Chain(home.root).start("serve", *arguments, *FREE_PORTS)
    try:
        eventually(lambda: process.poll() is not None or served(home) is not None, timeout_s=120)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert read_state(home.serving) is None and "The server has ended." in output


def served(home: Home) -> str | None:
    state = read_state(home.serving)
    return state.digest if state else None


def test_the_command_line_serves_the_champion_and_asks_it(place: Home, tmp_path: Path) -> None:
    champion, _ = packages(place)
    with serving(place):
        state = read_json(place.serving / "state.json")
        assert (state["digest"], state["follows_champion"]) == (champion, True)
        printed = Chain(place.root).call("generate", "a red seven", "-o", str(tmp_path / "out.png"), "--seed", "7")
        assert "seed 7" in printed and champion[:12] in printed
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
        Chain(place.root).call("generate", " ", "-o", str(tmp_path / "none.png"), code=2)
        assert not (tmp_path / "none.png").exists()
        streams_its_stages(place, tmp_path)


def streams_its_stages(place: Home, folder: Path) -> None:
    ask = ("generate", "a red seven", "-o", str(folder / "streamed.png"), "--seed", "7")
    options = ("--steps", "4", "--temperature", "0.9", "--guidance", "3")
    printed = Chain(place.root).call(*ask, *options, "--stream")
    preview, image = folder / "streamed.coarse.png", folder / "streamed.png"
    lines = [line for line in printed.splitlines() if " on the server)" in line]
    assert [line.split(" (")[0] for line in lines] == [f"coarse: {preview}", f"final: {image}"]
    times = [[float(number) for number in re.findall(r"([\d.]+) ms", line)] for line in lines]
    assert 0 < times[0][0] < times[1][0] and 0 < times[0][1] < times[1][1]
    sizes = {file: Image.open(file).size for file in (preview, image)}
    assert sizes == {preview: (32, 32), image: (64, 64)}
    small = folder / "small.png"
    Chain(place.root).call(*ask[:2], "-o", str(small), "--seed", "7", *options, "--size", "32x32")
    assert small.exists() and not (folder / "small.coarse.png").exists()
    assert Image.open(small).tobytes() == Image.open(preview).tobytes()
    for wrong, said in (("48x48", "this model draws 64x64 or 32x32"), ("big", "is no size")):
        assert said in Chain(place.root).call(*ask, "--size", wrong, code=2)


@pytest.mark.parametrize("page", ["docs/serving.md", "README.md", "serving/client/README.md"])
def test_the_programs_of_the_documentation_run(server: TritonServer, place: Home, tmp_path: Path, page: str) -> None:
    champion, _ = packages(place)
    server.load(place.packages / champion, "generator")
    programs = re.findall(r"```python\n(.*?)```", Path(page).read_text(), re.DOTALL)
    assert programs
    for program in programs:
        here = re.sub(r"(localhost|127\.0\.0\.1):8001", server.grpc_endpoint, program)
        assert here != program
        subprocess.run([sys.executable, "-c", here], check=True, timeout=180, cwd=tmp_path)


def test_a_package_that_was_asked_for_by_its_digest_outlives_a_promotion(place: Home) -> None:
    champion, other = packages(place)
    with serving(place, "--model", other[:12]):
        assert served(place) == other
        assert reconcile_if_running(place.serving, place.packages, champion) == "left as it was"
        assert served(place) == other


def test_a_server_that_runs_already_follows_the_champion(server: TritonServer, place: Home) -> None:
    champion, _ = packages(place)
    repository = server.folder / "repository"
    remote = ("serve", "--remote", server.grpc_endpoint, "--repository", str(repository))
    server.load(place.packages / champion, "generator")  # so that there is nothing to load without the key
    refused = Chain(place.root).call(*remote, code=1)
    assert "does not give control" in refused and "--control-key" in refused
    process = Chain(place.root).start(*remote, "--control-key", str(server.key_file))
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert champion[:12] in told and process.returncode == 0 and "serves on" in output, told + output
    with GeneratorClient(server.grpc_endpoint) as client:
        assert client.generate("a red seven").version == champion
    assert "go together" in Chain(place.root).call("serve", "--remote", server.grpc_endpoint, code=2)


def test_graphs_of_their_own_need_a_server_that_can_compute_them(server: TritonServer, place: Home) -> None:
    champion, _ = packages(place)
    server.load(place.packages / champion, "generator")
    remote = ("serve", "--remote", server.grpc_endpoint, "--repository", str(server.folder / "repository"))
    remote = (*remote, "--control-key", str(server.key_file))
    printed = Chain(place.root).call(*remote, "--accelerator", "tensorrt", code=1)
    assert "unable to find backend library for backend 'onnxruntime'" in printed and "--accelerator none" in printed
    with GeneratorClient(server.grpc_endpoint) as client:
        assert client.generate("a red seven").version == champion
    for arguments, said in (
        ((*remote, "--accelerator", "cuda"), "there is no accelerator 'cuda'"),
        ((*remote, "--accelerator", "onnxruntime", "--engine-cache", "/var/cache"), "an engine cache is for"),
        (("serve", "--accelerator", "tensorrt"), "are for a server of --remote"),
    ):
        assert said in Chain(place.root).call(*arguments, code=2)


def test_fault_21_a_release_store_that_does_not_answer_is_an_error_at_the_start(
    place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "releases.db").write_text("this is no database, whatever its name says" * 100)
    monkeypatch.setenv("EMUFLOW_RELEASE_URL", f"sqlite:///{tmp_path / 'releases.db'}")
    printed = Chain(place.root).call("serve", *FREE_PORTS, code=1)
    assert "the release store does not answer" in printed and "Traceback" not in printed

"""The embedded Triton server with real packages: names, versions, bad loads, and its end."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.errors import ServerError, SignatureError
from common.files import read_json, write_json
from emuflow_client import GeneratorClient, GeneratorError, Unavailable
from serving.server import HOST, Ports, TritonServer
from tests.packages import change_and_sign


def client(server: TritonServer, model: str) -> GeneratorClient:
    return GeneratorClient(server.grpc_endpoint, timeout_s=10, model=model)


def test_two_packages_serve_side_by_side_under_their_names(server: TritonServer, packages: dict[str, Path]) -> None:
    for name, precision in (("champion", "fp32"), ("candidate", "int8")):
        server.load(packages[precision], name, expected_digest=packages[precision].name)
    with client(server, "champion") as champion, client(server, "candidate") as candidate:
        first, second = champion.generate("a red seven", seed=5), candidate.generate("a red seven", seed=5)
    assert (first.version, second.version) == (packages["fp32"].name, packages["int8"].name)
    assert first.image.shape == second.image.shape == (64, 64, 3)
    assert (first.image != second.image).any()


def test_the_seed_decides_the_image_and_is_always_returned(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "generator")
    with client(server, "generator") as generator:
        drawn = generator.generate("a red seven", temperature=1.0)
        again = generator.generate("a red seven", seed=drawn.seed, temperature=1.0)
        other = generator.generate("a red seven", temperature=1.0)
    assert drawn.seed != other.seed
    assert (drawn.image == again.image).all() and (drawn.image != other.image).any()


def test_previews_come_before_the_image(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "generator")
    with client(server, "generator") as generator:
        preview, final = generator.stream("a blue nine", seed=1, coarse_steps=4)
    assert (preview.stage, preview.image.shape, preview.final) == ("coarse", (32, 32, 3), False)
    assert (final.stage, final.image.shape, final.final) == ("final", (64, 64, 3), True)
    assert 0 < preview.timings["coarse"] < final.timings["final"]
    assert final.image.dtype == np.uint8


def test_an_unloaded_model_is_gone(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "short")
    server.unload("short")
    with client(server, "short") as short, pytest.raises(Unavailable):
        short.generate("a red seven")


def no_graph(package: Path) -> None:
    (package / "1" / "engine" / "coarse.onnx").unlink()


def wrong_image_size(package: Path) -> None:
    config = read_json(package / "1" / "generator.json")
    write_json(package / "1" / "generator.json", config | {"image_size": [32, 32]})


def wrong_cache_shape(package: Path) -> None:
    shutil.copy(package / "1" / "engine" / "image_decoder.onnx", package / "1" / "engine" / "prefill.onnx")


def raises_on_load(package: Path) -> None:
    (package / "1" / "model.py").write_text("raise RuntimeError('no')\n")


def no_warmup_data(package: Path) -> None:
    (package / "warmup" / "prompt").unlink()


@pytest.mark.parametrize("change", [no_graph, wrong_image_size, wrong_cache_shape, raises_on_load, no_warmup_data])
def test_fault_14_a_package_that_cannot_load_leaves_the_old_one_serving(
    server: TritonServer,
    packages: dict[str, Path],
    key_folder: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    good = packages["int8"]
    server.load(good, "generator", expected_digest=good.name)
    bad = change_and_sign(Path(shutil.copytree(good, tmp_path / "bad")), change, key_folder)
    with pytest.raises(ServerError, match="could not load"):
        server.load(bad, "generator", expected_digest=bad.name)
    with client(server, "generator") as generator:
        assert generator.generate("a red seven").version == good.name
    assert server.repository.digest("generator") == good.name
    with pytest.raises(ServerError, match="could not load"):
        server.load(bad, "newcomer", expected_digest=bad.name)
    assert server.repository.digest("newcomer") is None


def resident_mb(server: TritonServer) -> float:
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in family) / 2**20


def test_fault_15_the_same_bad_package_loaded_fifty_times_does_not_fill_the_memory(
    server: TritonServer, packages: dict[str, Path], key_folder: Path, tmp_path: Path
) -> None:
    bad = change_and_sign(Path(shutil.copytree(packages["int8"], tmp_path / "bad")), no_graph, key_folder)
    memory_mb, processes = [], set()
    for _ in range(50):
        with pytest.raises(ServerError, match="could not load"):
            server.load(bad, "newcomer", expected_digest=bad.name)
        memory_mb.append(resident_mb(server))
        processes.add(len(psutil.Process(server.pid).children(recursive=True)))
    assert np.median(memory_mb[-5:]) <= 1.05 * np.median(memory_mb[:5]) and len(processes) == 1
    assert [path.name for path in server.repository.models.iterdir() if path.name == "newcomer"] == []


def test_fault_22_an_altered_package_is_not_loaded(
    server: TritonServer, packages: dict[str, Path], tmp_path: Path
) -> None:
    good = packages["int8"]
    server.load(good, "generator", expected_digest=good.name)
    altered = Path(shutil.copytree(packages["fp32"], tmp_path / "altered"))
    with (altered / "1" / "engine" / "weights.bin").open("r+b") as handle:
        handle.write(b"\x01")
    with pytest.raises(SignatureError, match=r"weights\.bin"):
        server.load(altered, "generator")
    with client(server, "generator") as generator:
        assert generator.generate("a red seven").version == good.name


def test_a_reload_under_load_loses_no_request(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "generator")
    versions: list[str] = []
    errors: list[GeneratorError] = []
    done = threading.Event()

    def ask() -> None:
        with client(server, "generator") as generator:
            while not done.is_set():
                try:
                    versions.append(generator.generate("a red seven").version)
                except GeneratorError as error:
                    errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for precision in ("fp32", "int8", "fp32"):
        server.load(packages[precision], "generator", expected_digest=packages[precision].name)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(versions) == {package.name for package in packages.values()}


def test_a_port_in_use_is_named(server: TritonServer, tmp_path: Path, key_folder: Path) -> None:
    taken = server.ports.grpc
    with pytest.raises(ServerError, match=f"port {taken} is already in use"):
        TritonServer(tmp_path, key_folder, ports=Ports(grpc=taken)).start()


def test_a_large_log_is_put_aside_at_the_start(tmp_path: Path, key_folder: Path) -> None:
    """Sparse files: their first line tells them apart."""
    log_file, aside = tmp_path / "triton.log", tmp_path / "triton.log.1"
    for said, size in (("small", 10_000), ("first", 17 << 20), ("second", 17 << 20)):
        log_file.write_text(said)
        os.truncate(log_file, size)
        with TritonServer(tmp_path, key_folder, stop_grace_s=0):
            pass
        if said == "small":
            assert not aside.exists() and log_file.read_bytes().startswith(b"small")
        else:
            assert aside.stat().st_size == size and aside.read_bytes().startswith(said.encode())
            assert 0 < log_file.stat().st_size < size
    assert sorted(path.name for path in tmp_path.glob("triton.log*")) == ["triton.log", "triton.log.1"]


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_stop_ends_every_process_and_frees_the_ports(
    tmp_path: Path, key_folder: Path, packages: dict[str, Path]
) -> None:
    server = TritonServer(tmp_path, key_folder).start()
    server.load(packages["int8"], "generator")
    processes = family(server.pid)
    assert {"tritonserver", "triton_python_b"} <= {process.name()[:15] for process in processes}
    server.stop()
    assert not server.alive
    _, left = psutil.wait_procs(processes, timeout=5)
    assert left == []
    Ports(server.ports.http, server.ports.grpc, server.ports.metrics).resolved()


OWNER = """
import sys, time
from pathlib import Path
from serving.server import TritonServer
server = TritonServer(Path(sys.argv[1]), Path(sys.argv[2])).start()
server.load(Path(sys.argv[3]), "generator")
print(server.pid, server.ports.grpc, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_fault_27_the_server_ends_with_its_owner(
    tmp_path: Path, key_folder: Path, packages: dict[str, Path], number: signal.Signals
) -> None:
    arguments = [str(tmp_path), str(key_folder), str(packages["int8"])]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout is not None
        guard, port = map(int, owner.stdout.readline().split())
        processes = family(guard)
        owner.send_signal(number)
    _, left = psutil.wait_procs(processes, timeout=20)
    assert left == []
    Ports(grpc=port).resolved()


def test_nothing_listens_beyond_this_machine(server: TritonServer) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        listening = [
            connection.laddr
            for process in family(server.pid)
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        if len(listening) >= 3:
            break
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {HOST}

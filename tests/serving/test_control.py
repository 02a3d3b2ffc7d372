"""Model control belongs to who has the server's key; images, health and statistics to whoever reaches the server."""

import base64
import contextlib
import http.client
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from common.errors import ServerError, UsageError
from emuflow_client import GeneratorClient
from serving.control import ModelControl
from serving.control_key import ControlKey
from serving.server import HOST, TritonServer

FILE = "file:1/model.py"
"""Triton writes what it is given under this name into a model of its own making, which nobody has verified."""
FOREIGN = b"raise RuntimeError('this is foreign code')"

Call = Callable[[InferenceServerClient, dict[str, str] | None], Any]
CALLS: dict[str, Call] = {
    "index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "load": lambda client, headers: client.load_model("generator", headers=headers),
    "load with files": lambda client, headers: client.load_model(
        "foreign", headers=headers, config=json.dumps({"backend": "python"}), files={FILE: FOREIGN}
    ),
    "unload": lambda client, headers: client.unload_model("generator", headers=headers),
    "model configuration": lambda client, headers: client.get_model_config("generator", headers=headers),
    "system shared memory": lambda client, headers: client.register_system_shared_memory(
        "region", "/region", 64, headers=headers
    ),
    "cuda shared memory": lambda client, headers: client.get_cuda_shared_memory_status(headers=headers),
    "trace": lambda client, headers: client.update_trace_settings(
        settings={"trace_level": ["TIMESTAMPS"]}, headers=headers
    ),
    "logging": lambda client, headers: client.update_log_settings({"log_verbose_level": 1}, headers=headers),
}
PATHS: dict[str, tuple[str, str, Any]] = {
    "index": ("POST", "/v2/repository/index", {}),
    "load": ("POST", "/v2/repository/models/generator/load", {}),
    "load with files": (
        "POST",
        "/v2/repository/models/foreign/load",
        {"parameters": {"config": '{"backend": "python"}', FILE: base64.b64encode(FOREIGN).decode()}},
    ),
    "unload": ("POST", "/v2/repository/models/generator/unload", {}),
    "model configuration": ("GET", "/v2/models/generator/config", None),
    "system shared memory": (
        "POST",
        "/v2/systemsharedmemory/region/region/register",
        {"key": "/region", "offset": 0, "byte_size": 64},
    ),
    "cuda shared memory": ("GET", "/v2/cudasharedmemory/status", None),
    "trace": ("POST", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    "trace of a model": ("POST", "/v2/models/generator/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    "logging": ("POST", "/v2/logging", {"log_verbose_level": 1}),
}


@pytest.fixture(scope="module", autouse=True)
def generator(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "generator", expected_digest=packages["int8"].name)


@pytest.fixture(autouse=True)
def unharmed(generator: None, server: TritonServer, packages: dict[str, Path]) -> Iterator[None]:
    """After each test the same package serves, and the server has nothing else."""
    yield
    with GeneratorClient(server.grpc_endpoint, timeout_s=10) as client:
        assert client.generate("a red seven").version == packages["int8"].name
    assert not server.control.is_ready("foreign")
    assert b"foreign code" not in server.log_file.read_bytes()


def ask(server: TritonServer, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> int:
    """Over HTTP; the answer's status."""
    connection = http.client.HTTPConnection(HOST, server.ports.http, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body), headers or {})
        return connection.getresponse().status


WRONG = ControlKey("emuflow-control", "0" * 64)


@pytest.mark.parametrize("key", [None, WRONG], ids=["without a key", "with a wrong one"])
def test_over_grpc_control_is_refused(server: TritonServer, key: ControlKey | None) -> None:
    headers = key.grpc_headers if key else None
    with InferenceServerClient(server.grpc_endpoint) as client:
        for name, call in CALLS.items():
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                call(client, headers)
                pytest.fail(f"{name} was granted")


@pytest.mark.parametrize("key", [None, WRONG], ids=["without a key", "with a wrong one"])
def test_over_http_control_is_refused(server: TritonServer, key: ControlKey | None) -> None:
    headers = {key.header: key.value} if key else {}
    statuses = {name: ask(server, *request, headers=headers) for name, request in PATHS.items()}
    assert statuses == dict.fromkeys(PATHS, http.client.FORBIDDEN)


def test_with_the_key_control_is_granted(server: TritonServer) -> None:
    key = ControlKey.read(server.key_file)
    with InferenceServerClient(server.grpc_endpoint) as client:
        index = client.get_model_repository_index(headers=key.grpc_headers)
    assert index is not None
    assert ("generator", "READY") in {(model.name, model.state) for model in index.models}
    assert ask(server, *PATHS["index"], headers={key.header: key.value}) == http.client.OK
    assert ask(server, *PATHS["unload"], headers={key.header: key.value}) == http.client.OK
    assert not server.control.is_ready("generator")
    assert ask(server, *PATHS["load"], headers={key.header: key.value}) == http.client.OK


def test_what_a_client_of_images_uses_is_open(server: TritonServer) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/generator", "/v2/models/generator/ready"):
        assert ask(server, "GET", path) == http.client.OK, path
    assert ask(server, "GET", "/v2/models/generator/stats") == http.client.OK
    with InferenceServerClient(server.grpc_endpoint) as client:
        assert client.is_server_ready() and client.is_model_ready("generator")
        assert client.get_server_metadata() and client.get_model_metadata("generator")
        assert client.get_inference_statistics("generator")


def test_our_own_control_without_the_key_says_so(server: TritonServer) -> None:
    control = ModelControl(server.grpc_endpoint)
    for ask in (control.check, lambda: control.load("generator")):
        with pytest.raises(ServerError, match=r"restricted.*\n.*--control-key"):
            ask()
    server.control.check()


def test_the_key_is_the_starts_own_and_its_owners_alone(tmp_path: Path, key_folder: Path) -> None:
    values = set()
    for _ in range(2):
        with TritonServer(tmp_path, key_folder, stop_grace_s=0) as server:
            assert stat.S_IMODE(server.key_file.stat().st_mode) == 0o600
            key = ControlKey.read(server.key_file)
            assert key.value not in server.log_file.read_text() and key.value not in repr(key)
            values.add(key.value)
        assert not server.key_file.exists()
    assert len(values) == 2 and all(len(value) == 64 for value in values)


@pytest.mark.parametrize("content", ["", "header", "=value", "header=", "header=vä", None])
def test_a_file_without_a_key_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(UsageError, match="key"):
        ControlKey.read(tmp_path / "key")

"""Fault 23, by the thousand: whatever is sent, each request gets an image or a typed error, and the server stays as it is."""

import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image

from emuflow_client import GeneratorClient, Result
from emuflow_client.wire import decode
from serving.server import TritonServer
from tests.serving.fuzzing import OUTPUTS, Fuzzed, fuzzed, messages

NAME = "fuzzed"
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
EVERY = 25
"""So many requests come between two that are right, and must get their image."""
REQUEST_ID = re.compile(r"\[request id: .*?\] ", re.DOTALL)
OURS = re.compile(r"(INVALID_ARGUMENT|DEADLINE_EXCEEDED): ")
TRITON = re.compile(
    r"expected|unexpected|incomplete|mismatch|already exists|Request for unknown model|version specified|specified version"
    r"|unable to find data|data-type is|dimensions should be specified"
)
"""What Triton itself says of a request that never reaches the model."""


class Fuzzer:
    """Sends requests and checks what comes back."""

    def __init__(self, channel: grpc.Channel, client: GeneratorClient):
        self._client, self.answers = client, Counter()
        self._ask = channel.stream_stream(
            METHOD, response_deserializer=messages.ModelStreamInferResponse.FromString
        )  # what is sent is bytes, whether they are a message or not
        self._expected = client.generate("a blue nine", seed=3).image

    def run(self, count: int, *, always_the_same: bool) -> None:
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=always_the_same,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(fuzzed(NAME))
        def send(one: Fuzzed) -> None:
            self.send(one)

        send()

    def send(self, sent: Fuzzed) -> None:
        """Raises `AssertionError` where the answer is neither stages with an image at their end nor a typed error."""
        call = self._ask(iter([sent.content]), timeout=sent.timeout_s)
        try:
            self.answers[self._answer(call, sent)] += 1
        except grpc.RpcError as error:
            code = error.code()  # pyright: ignore[reportAttributeAccessIssue]
            if code is grpc.StatusCode.CANCELLED:
                assert sent.hangs_up_after == 0
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                assert sent.timeout_s < 1, "the server did not answer"
            else:
                raise AssertionError(f"the call ended with {code}") from error
            self.answers[code.name] += 1
        finally:
            call.cancel()
        if self.answers.total() % EVERY == 0:
            self.expect_the_image()

    def _answer(self, call: Any, sent: Fuzzed) -> str:
        if sent.hangs_up_after == 0:
            call.cancel()
        asked, stages, kinds = _parsed(sent.content), [], []
        for reply in call:
            if reply.error_message:
                kinds.append(_kind_of_error(REQUEST_ID.sub("", reply.error_message, count=1)))
                continue  # to the stream's end: one that is cut off costs Triton memory
            if not _asks_for_everything(asked):
                kinds.append("a part of an image")
                continue
            if _asks_for_health(asked):
                _check_health(reply.infer_response)
                kinds.append("health")
                continue
            stages.append(decode(reply.infer_response))
            _check_image(stages[-1])
            if len(stages) == sent.hangs_up_after:
                return "hung up"
        if kinds:
            return kinds[-1]
        if not stages:  # Triton ends the stream of what is no message at all
            assert asked is None, "no answer came"
            return "no message"
        assert [stage.final for stage in stages] == [False] * (len(stages) - 1) + [True]
        return "image"

    def expect_the_image(self) -> None:
        np.testing.assert_array_equal(self._client.generate("a blue nine", seed=3).image, self._expected)


def _kind_of_error(message: str) -> str:
    found = OURS.match(message)
    assert found or TRITON.search(message), message
    return found[1] if found else "refused by Triton"


def _check_image(stage: Result) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(stage.png))) if stage.png is not None else stage.image
    assert pixels.dtype == np.uint8 and pixels.shape in ((64, 64, 3), (32, 32, 3))
    assert stage.seed >= 0 and len(stage.version) == 64 and stage.stage in stage.timings


def _check_health(response: Any) -> None:
    contents = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    assert contents.keys() == {"package_digest", "timings"}
    told = json.loads(contents["timings"][4:])
    assert told["under_way"] >= 0 and told["still_s"] >= 0 and told["copies"] == 1


def _parsed(content: bytes) -> Any:
    """The request, or None for bytes that are none."""
    try:
        return messages.ModelInferRequest.FromString(content)
    except DecodeError:
        return None


def _asks_for_everything(asked: Any) -> bool:
    """By name, or by naming nothing. A damaged request may name less."""
    named = {output.name for output in asked.outputs}
    return not named or named >= set(OUTPUTS)


def _asks_for_health(asked: Any) -> bool:
    """Only true itself does: another value is a parameter like any that the model does not know."""
    return "health" in asked.parameters and asked.parameters["health"].bool_param


@pytest.fixture(scope="module")
def fuzzer(server: TritonServer, packages: dict[str, Path]) -> Iterator[Fuzzer]:
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    with (
        grpc.insecure_channel(server.grpc_endpoint) as channel,
        GeneratorClient(server.grpc_endpoint, timeout_s=20, model=NAME, retries=0) as client,
    ):
        yield Fuzzer(channel, client)
    server.unload(NAME)


def processes(server: TritonServer) -> dict[int, psutil.Process]:
    return {process.pid: process for process in psutil.Process(server.pid).children(recursive=True)}


def resident_mb(server: TritonServer) -> dict[int, float]:
    """By process, once nothing is under way any more."""
    time.sleep(1)
    return {pid: process.memory_info().rss / 2**20 for pid, process in processes(server).items()}


def test_fault_23_hundreds_of_fuzzed_requests_harm_nothing(fuzzer: Fuzzer, server: TritonServer) -> None:
    before, counted = processes(server).keys(), fuzzer.answers.total()
    fuzzer.run(400, always_the_same=True)
    assert processes(server).keys() == before
    assert fuzzer.answers.total() - counted == 400
    assert fuzzer.answers["health"] >= 5, fuzzer.answers
    assert min(fuzzer.answers[kind] for kind in ("image", "INVALID_ARGUMENT", "refused by Triton")) >= 20, (
        fuzzer.answers
    )


@pytest.mark.slow
def test_fault_23_thousands_of_fuzzed_requests_leave_the_server_as_it_was(fuzzer: Fuzzer, server: TritonServer) -> None:
    """No process dies, and none takes more memory than after a warm-up with requests of the same sort."""
    pids = processes(server).keys()
    for _ in range(3):
        fuzzer.run(700, always_the_same=False)
    before, counted = resident_mb(server), fuzzer.answers.total()
    for _ in range(5):
        fuzzer.run(1000, always_the_same=False)
    after = resident_mb(server)
    assert fuzzer.answers.total() - counted >= 5000
    assert processes(server).keys() == pids == before.keys()
    assert sum(after.values()) == pytest.approx(sum(before.values()), rel=0.05), (before, after)
    for pid, megabytes in before.items():
        assert after[pid] <= 1.05 * megabytes, (before, after)
    assert min(fuzzer.answers[kind] for kind in ("image", "INVALID_ARGUMENT", "refused by Triton")) >= 500, (
        fuzzer.answers
    )

"""On a real server: guidance, the image's size and form, and how long an answer is of use."""

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from emuflow_client import AsyncGeneratorClient, GeneratorClient, InvalidRequest, Result, TimedOut
from emuflow_client.wire import encode
from serving.server import TritonServer
from tests.engines import TinyShape, write_engine
from tests.packages import build

NAME = "inputs"
PROMPT = "a red seven left of a green two"


@pytest.fixture(scope="module")
def client(server: TritonServer, packages: dict[str, Path]) -> Iterator[GeneratorClient]:
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    with GeneratorClient(server.grpc_endpoint, timeout_s=60, model=NAME, retries=0) as asked:
        yield asked


@pytest.fixture(scope="module")
def unguided(
    server: TritonServer, package_store: Path, key_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GeneratorClient]:
    """A package of a model that was never trained without a prompt."""
    engine = write_engine(tmp_path_factory.mktemp("unguided") / "engine", shape=TinyShape(unconditional_share=0.0))
    package = build(engine, package_store, key_folder)
    server.load(package, "unguided", expected_digest=package.name)
    with GeneratorClient(server.grpc_endpoint, timeout_s=60, model="unguided", retries=0) as asked:
        yield asked


def test_guidance_moves_the_image_and_1_is_none(client: GeneratorClient) -> None:
    def sketch(guidance: float | None, prompt: str = PROMPT) -> np.ndarray:
        return client.generate(prompt, seed=3, temperature=1.0, guidance=guidance, size=(32, 32)).image

    assert (sketch(1.0) == sketch(None)).all()
    assert (sketch(20.0) == sketch(20.0)).all()
    assert (sketch(20.0) != sketch(None)).any()
    other = "a purple six"
    assert (sketch(None, other) != sketch(None)).any()
    assert (sketch(0.0, other) == sketch(0.0)).all()  # all of it is the unconditional answer


def test_a_model_that_was_never_trained_without_a_prompt_refuses_guidance(unguided: GeneratorClient) -> None:
    assert unguided.generate(PROMPT, guidance=1.0).final
    with pytest.raises(InvalidRequest, match=r"'guidance' is 3, .* training\.masking\.unconditional_share above 0"):
        unguided.generate(PROMPT, guidance=3.0)


def test_the_sketch_s_size_is_the_preview_and_nothing_more(client: GeneratorClient) -> None:
    preview, whole = client.stream(PROMPT, seed=5)
    assert preview.image.shape == (32, 32, 3)
    (small,) = client.stream(PROMPT, seed=5, size=(32, 32))
    assert small.final and set(small.timings) == {"queue", "final"}
    np.testing.assert_array_equal(small.image, preview.image)
    np.testing.assert_array_equal(client.generate(PROMPT, seed=5, size=(64, 64)).image, whole.image)


def test_a_png_holds_the_pixels_of_every_stage(client: GeneratorClient) -> None:
    raw = list(client.stream(PROMPT, seed=6))
    encoded = list(client.stream(PROMPT, seed=6, format="png"))
    assert [stage.stage for stage in encoded] == ["coarse", "final"]
    for plain, stage in zip(raw, encoded, strict=True):
        assert plain.png is None and stage.png is not None
        with Image.open(io.BytesIO(stage.png)) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            np.testing.assert_array_equal(np.asarray(picture), plain.image)
        with pytest.raises(ValueError, match="PNG file"):
            _ = stage.image


def test_requests_of_other_forms_and_sizes_at_once_get_what_they_asked_for(client: GeneratorClient) -> None:
    """Form and deadline are each caller's own; size and guidance are drawn in groups of their own."""
    asked = [
        {
            "seed": number % 5,
            "format": "png" if number % 2 else "raw",
            "size": (32, 32) if number % 3 == 0 else None,
            "guidance": 4.0 if number % 4 == 0 else None,
            "deadline_ms": 60_000 if number % 5 else None,
        }
        for number in range(40)
    ]
    answers: dict[int, Result] = {}

    def ask(number: int) -> None:
        answers[number] = client.generate(PROMPT, **asked[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, one in enumerate(asked):
        alone = client.generate(PROMPT, seed=one["seed"], size=one["size"], guidance=one["guidance"])
        png = answers[number].png
        together = np.asarray(Image.open(io.BytesIO(png))) if png else answers[number].image
        assert (png is not None) == (one["format"] == "png")
        np.testing.assert_array_equal(together, alone.image)


def test_the_asyncio_client_asks_for_the_same(client: GeneratorClient, server: TritonServer) -> None:
    async def ask() -> tuple[Result, Result]:
        async with AsyncGeneratorClient(server.grpc_endpoint, timeout_s=60, model=NAME) as other:
            with pytest.raises(TimedOut, match="DEADLINE_EXCEEDED"):
                await other.generate(PROMPT, coarse_steps=64, deadline_ms=1)
            small = await other.generate(PROMPT, seed=7, size=(32, 32), guidance=2.0, deadline_ms=60_000)
            return small, await other.generate(PROMPT, seed=7, size=(32, 32), guidance=2.0, format="png")

    small, encoded = asyncio.run(ask())
    np.testing.assert_array_equal(small.image, client.generate(PROMPT, seed=7, size=(32, 32), guidance=2.0).image)
    assert encoded.png is not None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded.png))), small.image)


def test_the_time_in_the_queue_counts_and_a_late_request_is_not_drawn(
    client: GeneratorClient, server: TritonServer
) -> None:
    """Behind others that take longer than its deadline a request is given up, although it alone would be in time; and it is
    told so when its time is up, not when its turn comes."""
    alone_s = []
    for _ in range(5):
        start = time.perf_counter()
        client.generate(PROMPT, coarse_steps=64)
        alone_s.append(time.perf_counter() - start)
    deadline_ms, others, done = max(1, round(3000 * min(alone_s))), 64, []

    async def ask() -> None:
        async with AsyncGeneratorClient(server.grpc_endpoint, timeout_s=60, model=NAME) as asked:

            async def draw(number: int) -> None:  # each temperature is drawn by itself
                await asked.generate(PROMPT, coarse_steps=64, temperature=0.5 + number / 100)
                done.append(number)

            async def be_late() -> None:
                with pytest.raises(TimedOut, match=f"DEADLINE_EXCEEDED: there was no image within {deadline_ms} ms"):
                    await asked.generate(PROMPT, coarse_steps=63, deadline_ms=deadline_ms)
                done.append(others)

            await asyncio.gather(*(draw(number) for number in range(others)), be_late())

    asyncio.run(ask())
    assert len(done) == others + 1 and done.index(others) < others / 3
    assert client.generate(PROMPT, coarse_steps=63, deadline_ms=max(1000, 20 * deadline_ms)).final


def test_without_previews_it_is_the_same_image_in_one_answer(client: GeneratorClient) -> None:
    asked = {"seed": 5, "temperature": 1.0}
    *previews, with_preview = client.stream(PROMPT, **asked)
    (alone,) = client.stream(PROMPT, previews=False, **asked)
    assert [stage.stage for stage in previews] == ["coarse"] and list(alone.timings) == ["queue", "final"]
    np.testing.assert_array_equal(alone.image, with_preview.image)
    np.testing.assert_array_equal(client.generate(PROMPT, **asked).image, alone.image)
    assert "coarse" in client.generate(PROMPT, previews=True, **asked).timings


def test_a_wish_for_previews_that_is_neither_true_nor_false_is_refused(server: TritonServer) -> None:
    for wish in ("string_param", "yes"), ("int64_param", 7):
        request = encode(NAME, PROMPT, {})
        setattr(request.parameters["previews"], *wish)
        with grpc.insecure_channel(server.grpc_endpoint) as channel:
            (answer,) = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]), timeout=20)
        assert answer.error_message.startswith("INVALID_ARGUMENT: the parameter 'previews' is"), answer.error_message


def test_an_option_that_there_is_not_is_named(client: GeneratorClient) -> None:
    with pytest.raises(TypeError, match="a request has no steps; it has seed, coarse_steps"):
        client.generate(PROMPT, steps=3)  # pyright: ignore[reportCallIssue]

"""Every field of a request is checked before it is used."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.package.runtime.requests import Limits, Request, RequestError, parse

LIMITS = Limits(max_prompt_bytes=32, max_coarse_steps=8, max_temperature=2.0, max_guidance=10.0, max_deadline_ms=5000)
NAMES = ["prompt", "seed", "coarse_steps", "temperature", "guidance", "size", "format", "deadline_ms"]


def prompt(content: bytes) -> np.ndarray:
    return np.array([content], dtype=object)


def test_a_prompt_alone_is_enough_and_gets_a_seed() -> None:
    request = parse({"prompt": prompt(b"a red seven"), "seed": None}, LIMITS)
    assert request.prompt == "a red seven"
    assert request == Request("a red seven", request.seed, None, None)
    assert (request.guidance, request.size, request.format, request.deadline_ms) == (None, None, "raw", None)
    assert request.seed != parse({"prompt": prompt(b"a")}, LIMITS).seed


BLOCKED = replace(LIMITS, blocked_patterns=(r"\bknife\b", "blood.*moon", "stra(ß|ss)e"))


@pytest.mark.parametrize(
    "asked",
    [
        "a red knife",
        "A KNIFE!",
        "a \uff4b\uff4e\uff49\uff46\uff45",  # full-width letters
        "a kn\u200bife",  # a space of no width
        "a k\u00adnife",  # a soft hyphen
        "blood on a moon",
        "eine STRASSE",
        "eine Straße",
    ],
)
def test_a_blocked_prompt_is_refused_however_it_is_written(asked: str) -> None:
    with pytest.raises(RequestError, match="may not draw"):
        parse({"prompt": prompt(asked.encode())}, BLOCKED)
    assert parse({"prompt": prompt(asked.encode())}, LIMITS).prompt == asked


@pytest.mark.parametrize("asked", ["a red seven", "knifes", "moon, then blood"])
def test_other_prompts_are_not(asked: str) -> None:
    assert parse({"prompt": prompt(asked.encode())}, BLOCKED).prompt == asked


def test_given_fields_are_kept() -> None:
    fields = {
        "prompt": prompt("ein grüner Zweier".encode()),
        "seed": np.array([7], dtype=np.int64),
        "coarse_steps": np.array([8], dtype=np.int32),
        "temperature": np.array([0.5], dtype=np.float32),
        "guidance": np.array([2.5], dtype=np.float32),
        "size": np.array([32, 64], dtype=np.int32),
        "format": np.array([b"png"], dtype=object),
        "deadline_ms": np.array([5000], dtype=np.int64),
    }
    assert parse(fields, LIMITS) == Request("ein grüner Zweier", 7, 8, 0.5, 2.5, (32, 64), "png", 5000)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("prompt", None, "missing"),
        ("prompt", prompt(b""), "empty"),
        ("prompt", prompt(b" \n\t "), "empty"),
        ("prompt", prompt(b"x" * 33), "33 bytes, more than 32"),
        ("prompt", prompt(b"\xff\xfe"), "not UTF-8"),
        ("prompt", np.array([b"a", b"b"], dtype=object), "one value"),
        ("prompt", np.array([3], dtype=np.int64), "declared type"),
        ("prompt", np.array([None], dtype=object), "BYTES"),
        ("seed", np.array([-1], dtype=np.int64), "below 0"),
        ("seed", np.array([[1]], dtype=np.int64), "one value"),
        ("seed", np.array([1.0]), "declared type"),
        ("coarse_steps", np.array([0], dtype=np.int32), "outside 1..8"),
        ("coarse_steps", np.array([9], dtype=np.int32), "outside 1..8"),
        ("temperature", np.array([np.nan], dtype=np.float32), "outside 0..2"),
        ("temperature", np.array([np.inf], dtype=np.float32), "outside 0..2"),
        ("temperature", np.array([-0.1], dtype=np.float32), "outside 0..2"),
        ("temperature", np.array([2.5], dtype=np.float32), "outside 0..2"),
        ("guidance", np.array([np.nan], dtype=np.float32), "outside 0..10"),
        ("guidance", np.array([-np.inf], dtype=np.float32), "outside 0..10"),
        ("guidance", np.array([-0.5], dtype=np.float32), "outside 0..10"),
        ("guidance", np.array([10.5], dtype=np.float32), "outside 0..10"),
        ("size", np.array([64], dtype=np.int32), "height and a width"),
        ("size", np.array([[64, 64]], dtype=np.int32), "height and a width"),
        ("size", np.array([64.0, 64.0], dtype=np.float32), "height and a width"),
        ("format", np.array([b"PNG"], dtype=object), "none of raw, png"),
        ("format", np.array([b"\xff"], dtype=object), "none of raw, png"),
        ("format", np.array([b"raw", b"raw"], dtype=object), "one value"),
        ("deadline_ms", np.array([0], dtype=np.int64), "outside 1..5000"),
        ("deadline_ms", np.array([5001], dtype=np.int64), "outside 1..5000"),
        ("deadline_ms", np.array([-(2**63)], dtype=np.int64), "outside 1..5000"),
    ],
)
def test_fault_23_a_bad_field_is_named(name: str, tensor: np.ndarray | None, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse({"prompt": prompt(b"a")} | {name: tensor}, LIMITS)
    assert str(caught.value).startswith(f"INVALID_ARGUMENT: '{name}'")


ANY_TENSOR = hnp.arrays(
    dtype=st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes(), hnp.byte_string_dtypes()),
    shape=hnp.array_shapes(min_dims=0, max_dims=2, max_side=2),
)


@given(fields=st.dictionaries(st.sampled_from(NAMES), ANY_TENSOR))
def test_fault_23_no_tensor_at_all_gives_another_error(fields: dict[str, np.ndarray]) -> None:
    try:
        request = parse(fields, LIMITS)
    except RequestError:
        return
    assert request.prompt.strip()


@given(content=st.binary(max_size=40))
def test_fault_23_no_bytes_at_all_give_another_error(content: bytes) -> None:
    try:
        request = parse({"prompt": prompt(content)}, LIMITS)
    except RequestError:
        return
    assert request.prompt.encode() == content

"""An answer leads to its package, and its image is drawn again with the package's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UsageError
from emuflow_client import Result
from pipelines.lineage.answers import trace_response
from pipelines.lineage.response import read_response, write_response
from serving.package.runtime.generator import Generator
from serving.package.runtime.requests import Request

PROMPT, SEED = "a red seven left of a green two", 7


@pytest.fixture
def answer(place, tmp_path: Path) -> Path:
    """What `emuflow generate --json` writes of an image of the champion, drawn here."""
    request = Request(PROMPT, SEED, coarse_steps=2, temperature=None, previews=False)
    *_, final = Generator(place.home.packages / place.parent / "1").images(request)
    Image.fromarray(final.pixels).save(tmp_path / "out.png")
    result = Result(final.pixels, None, "final", place.parent, SEED, final.timings_ms)
    file = tmp_path / "out.json"
    write_response(file, PROMPT, {"coarse_steps": 2, "previews": False}, result, tmp_path / "out.png", 5.0)
    return file


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_answer_leads_to_its_package_and_its_run(place, answer):
    lineage = trace_response(place.sources(), answer)
    assert lineage.response is not None
    assert lineage.response.facts["prompt"] == PROMPT and lineage.response.facts["seed"] == str(SEED)
    assert [package.name for package in lineage.packages] == [place.parent]
    assert place.parent_run in [node.name for node in lineage.nodes()]
    assert not lineage.failed


def test_the_same_pixels_are_drawn_again(place, answer, outcomes):
    lineage = trace_response(place.sources(), answer, draw_again=True)
    assert "64x64 pixels are the same" in outcomes(lineage, "ok")["replay"].detail
    assert "package signature and files" in outcomes(lineage, "ok"), "nothing may be written into a package"


@pytest.mark.parametrize("changed", [{"seed": SEED + 1}, {"prompt": "a blue nine"}])
def test_another_request_gives_other_pixels(place, answer, outcomes, changed):
    _change(answer, **changed)
    failed = outcomes(trace_response(place.sources(), answer, draw_again=True), "failed")
    assert set(failed) == {"replay"} and failed["replay"].expected != failed["replay"].found


def test_an_image_that_was_altered_is_found(place, answer, outcomes):
    image = answer.with_suffix(".png")
    pixels = np.array(Image.open(image))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    assert set(outcomes(trace_response(place.sources(), answer), "failed")) == {"image file"}
    image.unlink()
    assert "out.png is gone" in outcomes(trace_response(place.sources(), answer), "unchecked")["image file"].detail


def test_the_code_of_an_altered_package_is_not_run(place, answer, outcomes, tmp_path):
    code = place.home.packages / place.parent / "1" / "runtime" / "__init__.py"
    before, trace = code.read_text(), tmp_path / "it-ran"
    try:
        code.write_text(f"open({str(trace)!r}, 'w').close()\n" + before)
        lineage = trace_response(place.sources(), answer, draw_again=True)
    finally:
        code.write_text(before)
    assert "does not verify" in outcomes(lineage, "unchecked")["replay"].detail
    assert "package signature and files" in outcomes(lineage, "failed")
    assert not trace.exists()


def test_the_answer_of_another_client_needs_the_digest_alone(place, tmp_path, outcomes):
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"package_digest": place.child, "something": "else"}))
    lineage = trace_response(place.sources(), file, draw_again=True)
    assert [package.name for package in lineage.packages] == [place.child, place.parent]
    assert "prompt, seed, image" in outcomes(lineage, "unchecked")["replay"].detail


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"package_digest": "../../etc"}', '{"package_digest": 7}'])
def test_a_file_that_is_no_answer_is_refused(tmp_path, content):
    file = tmp_path / "answer.json"
    file.write_text(content)
    with pytest.raises(UsageError, match="no answer of a package"):
        read_response(file)
    with pytest.raises(UsageError, match="no such file"):
        read_response(tmp_path / "absent.json")


def test_an_answer_of_a_package_from_elsewhere_is_told_so(place, tmp_path):
    file = tmp_path / "answer.json"
    file.write_text(json.dumps({"package_digest": "0" * 64}))
    with pytest.raises(UsageError, match="nothing of it is here"):
        trace_response(place.sources(), file)

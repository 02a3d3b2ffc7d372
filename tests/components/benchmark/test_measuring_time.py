"""How long a benchmark measures, on a real Triton server: for as long as the gate's bounds are open."""

from dataclasses import replace

import numpy as np
import pytest

from components.benchmark.evaluation import load_evaluation
from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, rounds
from components.benchmark.quality import Readings
from components.benchmark.settings import LatencySettings
from components.judge.reading import load_judge
from tests.components.benchmark.conftest import CAPTIONS, SETTINGS
from tests.components.benchmark.test_benchmark import SURE, append, changed, exported, run

LATE = """

_draw = Generator.draw


def _draw_late(self, group):
    time.sleep(0.05)
    yield from _draw(self, group)


Generator.draw = _draw_late
"""


def test_a_candidate_that_is_surely_slower_is_asked_each_caption_once(workbench, tmp_path):
    slow = changed(workbench, lambda package: append(package / "1" / "runtime" / "generator.py", LATE))
    bench = replace(workbench, exported=exported(tmp_path, slow, workbench.fp32))
    latency = LatencySettings(block_requests=4, min_rounds=6, max_rounds=30, full_rounds=2)
    settings = SETTINGS.model_copy(update={"bounds": SURE, "latency": latency})
    record = run(bench, tmp_path / "measurements", champion=workbench.fp32, settings=settings)
    assert record.status == "VALID", record.reasons
    assert record.seeds_per_caption == 1 and len(rounds(record.arms[CANDIDATE].latency_blocks)) == 6
    for name in (CANDIDATE, FULL_PRECISION, CHAMPION):
        correctness = record.arms[name].correctness
        assert correctness is not None and len(correctness.correct) == CAPTIONS
    assert record.arms[CANDIDATE].open_load is not None


@pytest.mark.parametrize(("margin", "seeds"), [(1.0, 2), (0.0, 4)])
def test_captions_are_asked_until_the_accuracy_is_clear_or_often_enough(workbench, tmp_path, margin, seeds):
    """Two models without skill, at a margin that is surely kept, and at one that nothing proves."""
    bounds = SURE.model_copy(update={"accuracy_margin": margin, "max_p50_ratio": 100.0, "max_p95_ratio": 100.0})
    settings = SETTINGS.model_copy(update={"bounds": bounds, "max_seeds_per_caption": 4})
    record = run(workbench, tmp_path / "measurements", champion=workbench.fp32, settings=settings)
    assert record.status == "VALID", record.reasons
    assert record.seeds_per_caption == seeds
    correctness = record.arms[CANDIDATE].correctness
    assert correctness is not None and len(correctness.correct) == seeds * CAPTIONS
    assert sum(chunk.images for chunk in record.arms[CANDIDATE].throughput_chunks) == seeds * CAPTIONS


def test_images_that_are_read_as_they_come_are_read_as_those_that_are_read_at_once(workbench):
    judge, evaluation = load_judge(workbench.judge), load_evaluation(workbench.evaluation_set, unjudged_captions=1)
    assert judge is not None and evaluation.expected is not None
    random = np.random.default_rng(0)
    drawn = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2 * CAPTIONS)]
    images: list[np.ndarray | None] = [None, *drawn[1:]]
    bit_by_bit, at_once = Readings(judge, evaluation.expected), Readings(judge, evaluation.expected)
    bit_by_bit.read({CANDIDATE: images[:CAPTIONS], CHAMPION: [None] * CAPTIONS})
    bit_by_bit.read({CANDIDATE: images, CHAMPION: [None] * 2 * CAPTIONS})
    at_once.read({CANDIDATE: images})
    assert bit_by_bit.correctness() == at_once.correctness() and bit_by_bit.seen().keys() == {CANDIDATE}
    assert np.array_equal(bit_by_bit.seen()[CANDIDATE], at_once.seen()[CANDIDATE])

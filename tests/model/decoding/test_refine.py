"""Which cells of a sketch a pass fixes, how sure it must be, and which way guidance pulls: on a session that is told its
logits."""

from typing import Any, cast

import numpy as np
import pytest

from model.decoding import loop
from model.decoding.loop import DecodingOptions, refine_sketch
from model.decoding.samplers import sample, streams
from model.decoding.schedule import known_after_step
from model.decoding.session import Prefix, TokenSession

ROWS, COLUMNS, CODES = 4, 6, 10
CELLS = ROWS * COLUMNS


class Told:
    """Gives each image the logits of its prompt, float32 [prompts, cells, codes], whatever is known; notes what it was asked."""

    coarse_grid, visual_vocabulary = (ROWS, COLUMNS), CODES

    def __init__(self, logits: np.ndarray):
        self._logits, self.asked = logits.astype(np.float32), list[np.ndarray]()

    def coarse(self, past: np.ndarray, coarse_ids: np.ndarray, plan_ids: np.ndarray | None) -> np.ndarray:
        self.asked.append(coarse_ids.copy())
        return self._logits[past[0, 0, :, 0, 0, 0].astype(int)]


def reading(*prompts: int) -> Prefix:
    """The prefix of these prompts."""
    return np.array(prompts, dtype=np.float32).reshape(1, 1, -1, 1, 1, 1), None, None


def refined(told: Told, prompts: tuple[int, ...], options: DecodingOptions, free: Prefix | None = None) -> np.ndarray:
    return refine_sketch(
        cast(TokenSession, told), reading(*prompts), options, streams([7 + n for n in range(len(prompts))]), free
    )


@pytest.mark.parametrize("steps", [2, 5, CELLS])
def test_each_pass_fixes_what_the_schedule_says_and_nothing_that_is_fixed_changes(steps):
    told = Told(np.random.default_rng(0).normal(size=(2, CELLS, CODES)))
    sketch = refined(told, (0, 1), DecodingOptions(coarse_steps=steps, temperature=1.0))
    assert len(told.asked) == steps and (told.asked[0] == CODES).all()
    for step, (before, after) in enumerate(zip(told.asked, [*told.asked[1:], sketch], strict=True)):
        known = before != CODES
        assert (after[known] == before[known]).all()
        assert (after != CODES).sum(1).tolist() == [known_after_step(step, steps, CELLS)] * 2
    assert sketch.min() >= 0 and sketch.max() < CODES


def test_the_surest_cells_come_first_where_confidence_counts_and_any_where_it_does_not():
    sure = np.random.default_rng(1).permutation(CELLS)
    logits = np.zeros((1, CELLS, CODES))
    logits[0, sure, 3] = np.linspace(1, 8, CELLS)  # the later in `sure`, the surer
    greedy = {"coarse_steps": 4, "temperature": 0.0}
    weighed, random = Told(logits), Told(logits)
    refined(weighed, (0,), DecodingOptions(confidence_weight=1e6, **greedy))
    refined(random, (0,), DecodingOptions(confidence_weight=0.0, **greedy))
    for asked in weighed.asked[1:]:
        known = int((asked != CODES).sum())
        assert set(np.flatnonzero(asked[0] != CODES)) == set(sure[CELLS - known :])
    first = random.asked[1]
    assert set(np.flatnonzero(first[0] != CODES)) != set(sure[CELLS - int((first != CODES).sum()) :])


def test_the_temperature_falls_from_pass_to_pass(monkeypatch):
    seen = []

    def noted(logits: np.ndarray, temperature: float, *more: Any) -> tuple[np.ndarray, np.ndarray]:
        seen.append(temperature)
        return sample(logits, temperature, *more)

    monkeypatch.setattr(loop, "sample", noted)
    refined(Told(np.zeros((1, CELLS, CODES))), (0,), DecodingOptions(coarse_steps=4, temperature=0.8))
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_guidance_pulls_towards_what_the_prompt_says():
    """Both prompts find code 5 a little likelier; only the one that asks for code 3 finds that one likely at all."""
    logits = np.zeros((2, CELLS, CODES))
    logits[:, :, 5], logits[1, :, 3] = 1.1, 1.0
    options = DecodingOptions(temperature=0.0)
    assert (refined(Told(logits), (1,), options) == 5).all()
    told = Told(logits)
    assert (refined(told, (1,), DecodingOptions(temperature=0.0, guidance=3.0), free=reading(0)) == 3).all()
    assert len(told.asked) == 1 and told.asked[0].shape == (2, CELLS)

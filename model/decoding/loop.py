"""From a prompt to an image, coarse to fine: a plan, a sketch in a few parallel steps, one pass for each stage of details."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import OptionsError
from .samplers import draw, guide, gumbel_noise, sample, streams
from .schedule import known_after_step
from .session import Prefix, Session, TokenSession


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How an image is drawn."""

    coarse_steps: int = 1
    """Parallel passes over the sketch."""
    temperature: float = 0.4
    """Sampling temperature of the sketch's first pass; it falls linearly over the passes. 0 is greedy."""
    plan_temperature: float = 0.9
    """Sampling temperature of the plan, where the model has one. 0 gives every seed the same plan."""
    fine_temperature: float = 0.0
    """Sampling temperature of the details."""
    top_k: int = 0
    """Only the k most likely tokens are drawn; 0 is all."""
    top_p: float = 1.0
    """Only the nucleus of this probability is drawn; 1 is all."""
    confidence_weight: float = 0.0
    """How much the surest tokens come first: 0 fixes tokens in random order, large values strictly by confidence.

    Confidence first draws the empty background first and leaves little to chance; random order keeps variety. One pass
    fixes all at once, and has no order.
    """
    redraw_below: float = 0.0
    """Cells of the finished sketch that were drawn with less than this probability are drawn again, once, given all
    others; 0 redraws none."""
    fine_redraw_below: float = 0.0
    """Blocks of details with a token that was drawn with less than this probability are drawn again, once, given all
    others of their stage; 0 redraws none."""
    guidance: float = 1.0
    """Classifier-free guidance of the sketch; anything but 1 needs an unconditional prompt."""
    detail_stages: int | None = None
    """Stages of details that follow the sketch; the image is smaller with fewer, and None is all that the model has."""
    previews: bool = True
    """Whether the stages before the image are shown. Without them an image of one pass each may be drawn in one call."""


@dataclass(frozen=True)
class Stage:
    """One finished stage: a preview, or the final image."""

    name: str
    """`coarse`, then `fine`, `fine2`, ... where several stages of details follow; the last one is `final`."""
    pixels: np.ndarray
    """uint8 [batch, height, width, 3]."""
    seconds: float
    """Since the loop began."""


def generate(
    session: Session,
    text_ids: np.ndarray,
    options: DecodingOptions,
    seeds: list[int],
    unconditional_ids: np.ndarray | None = None,
) -> Iterator[Stage]:
    """Draw one image per prompt and yield each stage as it is done.

    `text_ids` int64 [batch, text_length]; `seeds` one per prompt: an image depends on its prompt, its seed and the
    options alone, not on the batch it is drawn in. `unconditional_ids` int64 [text_length] is the prompt that says
    nothing, for guidance. Raises `OptionsError` for guidance without it, for stages of details that the model does not
    have, and for a sketch of no pass.
    """
    start = time.perf_counter()
    if options.coarse_steps < 1:
        raise OptionsError(f"coarse_steps is {options.coarse_steps}: ask for 1 or more")
    last, (rows, columns) = _last_stage(session, options), session.coarse_grid
    generators = streams(seeds)
    noise = plan_noise(session, options.plan_temperature, generators)
    if session.draw_image is not None and last == session.detail_stages and takes_noise_alone(options):
        of_sketch = _noise(options.temperature, generators, (rows * columns, session.visual_vocabulary))
        yield Stage("final", session.draw_image(text_ids, noise, of_sketch), time.perf_counter() - start)
        return
    prefix = session.prefill(text_ids, noise)
    free = None
    if options.guidance != 1:
        if unconditional_ids is None:
            raise OptionsError(
                f"guidance {options.guidance} needs an unconditional prompt: give unconditional_ids, or ask for guidance 1"
            )
        nothing = np.broadcast_to(unconditional_ids, text_ids.shape).copy()
        free = session.prefill(nothing)  # the image follows the prompt's own plan
    sketch = refine_sketch(session, prefix, options, generators, free)
    for stage, grid in enumerate(grow(session, prefix, sketch, options, seeds, last)):
        if stage == last:
            yield Stage("final", session.decode_image(grid), time.perf_counter() - start)
        elif options.previews:
            yield Stage(stage_name(stage), session.decode_image(grid), time.perf_counter() - start)


def grow(
    session: TokenSession, prefix: Prefix, sketch: np.ndarray, options: DecodingOptions, seeds: list[int], stages: int
) -> Iterator[np.ndarray]:
    """The grids that a sketch, int64 [batch, coarse_tokens], becomes in so many `stages` of details, from its own on:
    int64 [batch, rows, columns]."""
    rows, columns = session.coarse_grid
    grid = sketch.reshape(-1, rows, columns)
    yield grid
    for stage in range(1, stages + 1):
        # A stream of their own: how often an earlier stage drew must not change them.
        generators = streams(seeds, stage=stage)
        blocks = draw_details(session, prefix, grid.reshape(len(grid), -1), options, generators, stage)
        grid = unpack_blocks(blocks, rows << stage - 1, columns << stage - 1)
        yield grid


def stage_name(stage: int) -> str:
    """What a stage is called: the sketch, 0, `coarse`, and those of details `fine`, `fine2`, `fine3`, ..."""
    return ("coarse", "fine")[stage] if stage < 2 else f"fine{stage}"


def _last_stage(session: Session, options: DecodingOptions) -> int:
    last = session.detail_stages if options.detail_stages is None else options.detail_stages
    if not 0 <= last <= session.detail_stages:
        raise OptionsError(
            f"detail_stages is {last}, but this model has {session.detail_stages}: ask for 0 to {session.detail_stages}, or"
            " None for all"
        )
    return last


def refine_sketch(
    session: TokenSession,
    prefix: Prefix,
    options: DecodingOptions,
    generators: list[np.random.Generator],
    free: Prefix | None = None,
) -> np.ndarray:
    """Fill the sketch in `coarse_steps` parallel passes: int64 [batch, coarse_tokens].

    `free` is the unconditional prompt, where the options ask for guidance.
    """
    tokens, unknown = session.coarse_grid[0] * session.coarse_grid[1], session.visual_vocabulary
    logits = _sketch_logits(session, prefix, free, options.guidance)
    ids = np.full((len(generators), tokens), unknown, dtype=np.int64)
    if options.coarse_steps == 1 and not options.redraw_below:  # nobody asks how certain the tokens are
        return draw(logits(ids), options.temperature, generators, options.top_k, options.top_p)
    certainty = np.zeros(ids.shape, dtype=np.float32)
    for step in range(options.coarse_steps):
        temperature = options.temperature * (1 - step / options.coarse_steps)
        drawn, confidence = sample(logits(ids), temperature, generators, options.top_k, options.top_p)
        fixed = ids == unknown
        if step < options.coarse_steps - 1:
            fixed &= _first_in_line(fixed, confidence, step, options, generators)
        ids, certainty = np.where(fixed, drawn, ids), np.where(fixed, confidence, certainty)
    unsure = certainty < np.log(options.redraw_below) if options.redraw_below > 0 else np.zeros(ids.shape, dtype=bool)
    if unsure.any():
        again = logits(np.where(unsure, unknown, ids))
        drawn = draw(again, options.temperature / 2, generators, options.top_k, options.top_p)
        ids = np.where(unsure, drawn, ids)
    return ids


def plan_noise(session: TokenSession, temperature: float, generators: list[np.random.Generator]) -> np.ndarray | None:
    """What the draw of the plans takes, float32 [batch, *plan_noise_shape]; None for a model without plans."""
    return None if session.plan_noise_shape is None else _noise(temperature, generators, session.plan_noise_shape)


def _noise(temperature: float, generators: list[np.random.Generator], shape: tuple[int, ...]) -> np.ndarray:
    """Gumbel noise times the temperature: added to logits, it leaves the one that is drawn the largest."""
    if temperature <= 0:
        return np.zeros((len(generators), *shape), dtype=np.float32)
    return gumbel_noise(generators, shape) * np.float32(temperature)


def takes_noise_alone(options: DecodingOptions) -> bool:
    """Whether nothing between the prompt and the pixels is to be looked at or decided."""
    one_pass = options.coarse_steps == 1 and not options.redraw_below and options.guidance == 1
    whole_distribution = options.top_k == 0 and options.top_p >= 1
    most_likely_details = options.fine_temperature <= 0 and not options.fine_redraw_below
    return one_pass and whole_distribution and most_likely_details and not options.previews


def _sketch_logits(
    session: TokenSession, prefix: Prefix, free: Prefix | None, guidance: float
) -> Callable[[np.ndarray], np.ndarray]:
    """The sketch's logits as a function of what is known of it."""
    past, plan, _ = prefix
    if free is None:
        return lambda ids: session.coarse(past, ids, plan)
    # With and without the prompt in one pass: on a small image a pass costs more to start than its second row.
    both = np.concatenate([past, free[0]], axis=2)
    plans = None if plan is None else np.concatenate([plan, plan])

    def logits(ids: np.ndarray) -> np.ndarray:
        conditional, unconditional = np.split(session.coarse(both, np.concatenate([ids, ids]), plans), 2)
        return guide(conditional, unconditional, guidance)

    return logits


def _first_in_line(
    missing: np.ndarray,
    confidence: np.ndarray,
    step: int,
    options: DecodingOptions,
    generators: list[np.random.Generator],
) -> np.ndarray:
    """Which tokens are known after this step: bool [batch, tokens]."""
    tokens = missing.shape[1]
    priority = options.confidence_weight * confidence + gumbel_noise(generators, (tokens,))
    priority = np.where(missing, priority, np.inf)
    known = known_after_step(step, options.coarse_steps, tokens)
    threshold = np.partition(priority, tokens - known, axis=-1)[:, tokens - known, None]
    return priority >= threshold


def draw_details(
    session: TokenSession,
    prefix: Prefix,
    cells: np.ndarray,
    options: DecodingOptions,
    generators: list[np.random.Generator],
    stage: int = 1,
) -> np.ndarray:
    """All tokens of a stage in one pass from the grid before it, int64 [batch, cells]: int64 [batch, cells, 4]."""
    unknown, (past, plan, _) = session.visual_vocabulary, prefix
    blank = np.full((*cells.shape, 4), unknown, dtype=np.int64)
    logits = session.fine(past, cells, blank, plan, stage)
    if not options.fine_redraw_below:  # nobody asks how certain the tokens are
        return draw(logits, options.fine_temperature, generators, options.top_k, options.top_p)
    blocks, certainty = sample(logits, options.fine_temperature, generators, options.top_k, options.top_p)
    unsure = (certainty < np.log(options.fine_redraw_below)).any(-1, keepdims=True)
    if unsure.any():
        again = session.fine(past, cells, np.where(unsure, unknown, blocks), plan, stage)
        drawn = draw(again, options.fine_temperature, generators, options.top_k, options.top_p)
        blocks = np.where(unsure, drawn, blocks)
    return blocks


def pack_blocks(fine: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A grid as 2x2 blocks of a cell each: [batch, 2 * rows, 2 * columns] -> [batch, rows * columns, 4]."""
    blocks = fine.reshape(-1, rows, 2, columns, 2).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(len(fine), rows * columns, 4)


def unpack_blocks(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The inverse of `pack_blocks`: [batch, rows * columns, 4] -> [batch, 2 * rows, 2 * columns]."""
    grid = blocks.reshape(-1, rows, columns, 2, 2).transpose(0, 1, 3, 2, 4)
    return grid.reshape(len(blocks), 2 * rows, 2 * columns)

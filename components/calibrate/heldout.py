"""The held-out loss of the exported graphs: what is served is what is scored, in each precision."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.files import sha256_bytes
from components.calibrate.settings import CalibrationSettings
from model.data.grids import Grids, read_grids
from model.data.shards import Shards
from model.decoding.samplers import log_softmax
from model.decoding.session import Session
from model.objectives.heldout import fixed_masks, plan_codes
from model.transformer.model import Generator
from serving.package.runtime.engine import EngineSession

PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Questions:
    """Held-out samples with the tokens that are hidden of each."""

    grids: Grids
    hidden: np.ndarray
    """Cells of the sketch, bool [n, draws, coarse_tokens]."""
    plan_noise: np.ndarray | None
    """With it a graph draws the samples' own plans and no others: float32 [n, *plan_noise_shape]; None without plans."""
    samples_digest: str
    """sha256 over the ids of the samples, in their order."""
    masks_digest: str
    groups: list[int] | None
    """The group of each, samples of one group being no news beside one another; `None` where the shards do not tell."""

    def part(self, start: int, stop: int) -> "Questions":
        return replace(
            self,
            grids=self.grids.map(lambda ids: ids[start:stop]),
            groups=self.groups and self.groups[start:stop],
            hidden=self.hidden[start:stop],
            plan_noise=None if self.plan_noise is None else self.plan_noise[start:stop],
        )


def describe_heldout(
    settings: CalibrationSettings, engine: Path, description: Mapping[str, Any], heldout: Shards, generator: Generator
) -> dict[str, Any]:
    """`heldout` of `calibration.json`: the loss of each sample in both precisions of `engine`, and what it is about.

    `description` is the content of `generator.json`. `generator`, the checkpoint, tells the plans of true sketches: the
    graphs hold no encoder. Two records may be compared only where everything but the losses is equal (`groups`, which older
    ones do not have, follow from the samples).
    """
    asked = heldout_questions(heldout, settings.heldout_samples, generator)
    losses = {}
    for precision in PRECISIONS:
        session = EngineSession(engine / precision, description, threads=1, scores_plans=True)
        losses[precision] = graph_losses(session, asked, settings.batch_size)
    return {
        "samples_digest": asked.samples_digest,
        "masks_digest": asked.masks_digest,
        "text_length": description["text_length"],
        "coarse_grid": description["coarse_grid"],
        "fine_grid": description["fine_grid"],
        "loss_per_sample": losses,
        "groups": asked.groups,
    }


def heldout_questions(heldout: Shards, count: int, generator: Generator) -> Questions:
    """Up to `count` samples, spread evenly over all, each under the masks that training scores it with."""
    rows = np.unique(np.linspace(0, len(heldout) - 1, min(count, len(heldout))).round().astype(np.int64))
    asked = read_grids(heldout, rows.tolist(), generator.config)
    masks = _masks_of(rows, len(heldout), generator.config.coarse_tokens)
    ids = "".join(heldout.sample_id(int(row)) for row in rows)
    plan = plan_codes(generator, asked)
    return Questions(
        grids=asked,
        hidden=masks,
        plan_noise=None if plan is None or generator.plan is None else generator.plan.prior.certain(plan).numpy(),
        samples_digest=sha256_bytes(bytes.fromhex(ids)),
        masks_digest=sha256_bytes(np.packbits(masks).tobytes()),
        groups=heldout.groups and [heldout.groups[row] for row in rows.tolist()],
    )


def graph_losses(session: Session, asked: Questions, batch_size: int) -> list[float | None]:
    """Cross-entropy in nats per token of each sample, as `model.objectives.heldout` defines it; `None` where it is not
    finite."""
    losses: list[np.ndarray] = []
    for start in range(0, len(asked.hidden), batch_size):
        losses.append(_batch_losses(session, asked.part(start, start + batch_size)))
    return [float(loss) if np.isfinite(loss) else None for loss in np.concatenate(losses)]


def _batch_losses(session: Session, asked: Questions) -> np.ndarray:
    """[n] losses; the grids weigh by their tokens, as in training."""
    unknown, (text_ids, sketch) = session.visual_vocabulary, (asked.grids.text_ids.numpy(), asked.grids.coarse.numpy())
    past, plan, plan_logits = session.prefill(text_ids, asked.plan_noise)
    of_sketch = np.zeros(len(sketch))
    if plan is not None and plan_logits is not None:
        of_sketch += _cross_entropy(plan_logits, plan).sum(1) / sketch.shape[1]
    draws = asked.hidden.shape[1]
    for draw in range(draws):
        hidden = asked.hidden[:, draw]
        each = _cross_entropy(session.coarse(past, np.where(hidden, unknown, sketch), plan), sketch)
        of_sketch += (each * hidden).sum(1) / hidden.sum(1) / draws
    total, tokens = of_sketch * sketch.shape[1], sketch.shape[1]
    for stage, details in enumerate(asked.grids.details, start=1):
        cells, blocks = asked.grids.cells[stage - 1].numpy(), details.numpy()
        each = _cross_entropy(session.fine(past, cells, np.full_like(blocks, unknown), plan, stage), blocks)
        total, tokens = total + each.reshape(len(each), -1).sum(1), tokens + blocks[0].size
    return total / tokens


def _cross_entropy(logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Nats of each code: float32 [..., vocabulary] and int64 [...] to float [...]."""
    return -np.take_along_axis(log_softmax(logits), codes[..., None], axis=-1)[..., 0]


def _masks_of(rows: np.ndarray, samples: int, tokens: int) -> np.ndarray:
    """bool [n, draws, tokens] of the chosen rows; only these are kept of all the samples' masks."""
    kept, start = [], 0
    for masks in fixed_masks(samples, tokens):
        stop = start + masks.shape[1]
        kept.append(masks.numpy()[:, rows[(rows >= start) & (rows < stop)] - start])
        start = stop
    return np.ascontiguousarray(np.concatenate(kept, axis=1).transpose(1, 0, 2))

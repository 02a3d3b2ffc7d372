"""Train the judge once for each recipe, measure it on test digits, and keep it under the recipe's digest."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import EmuflowError
from common.files import atomic_path, digest_json, read_json, sha256_file, write_json
from common.progress import report
from components.ingest.digit_world import digits, render, scenes
from components.judge import network, reading
from components.judge.network import CROP_SIZE, Judge, Reader, slot_crops
from components.judge.reading import GRAPH_NAME, IMAGE_SIZE, RECORD_NAME, JudgeReport, compare, read
from components.judge.settings import JudgeSettings

_log = logging.getLogger(__name__)
_SOURCES = (network, reading, digits, render, scenes)
_WARP_POINTS = 5


@dataclass(frozen=True)
class TrainedJudge:
    """How well the judge in `folder` reads real scenes of test digits."""

    report: JudgeReport
    folder: Path


class JudgeError(EmuflowError):
    """The judge reads real scenes too badly to judge generated ones."""


def trained_judge(settings: JudgeSettings, cache: Path) -> TrainedJudge:
    """The judge of this recipe, from `cache/judges/<recipe digest>/` or trained now (about 30 s on one core).

    A cached judge whose record is damaged, or whose graph is not the recorded one, is trained again. Raises `JudgeError` where the judge's own
    accuracy on test digits is below `settings.min_accuracy`.
    """
    folder = cache / "judges" / recipe_digest(settings)
    found = _cached(folder)
    if found is None:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            found = _make(settings, temporary)
    if found.accuracy < settings.min_accuracy:
        raise JudgeError(
            f"the judge reads real scenes with accuracy {found.accuracy:.3f}, below {settings.min_accuracy}",
            where=str(folder),
            fix="train it for more steps (judge.steps)",
        )
    return TrainedJudge(found, folder)


def recipe_digest(settings: JudgeSettings) -> str:
    """sha256 over everything that makes the judge: its settings, its code and the renderer's."""
    sources = [Path(__file__), *(Path(str(module.__file__)) for module in _SOURCES)]
    recipe = settings.model_dump(exclude={"min_accuracy"})
    return digest_json({"settings": recipe, "sources": {path.name: sha256_file(path) for path in sources}})


def _cached(folder: Path) -> JudgeReport | None:
    """The record of the judge in `folder`, `None` where it or the graph is not whole."""
    record, graph = folder / RECORD_NAME, folder / GRAPH_NAME
    if not record.is_file() or not graph.is_file():
        return None
    try:
        found = JudgeReport.model_validate(read_json(record))
    except ValueError as error:  # neither JSON nor UTF-8, or not such a record
        _log.warning("the judge's record is damaged (%s), so it is trained again: %s", type(error).__name__, record)
        return None
    return found if found.digest == sha256_file(graph) else None


def _make(settings: JudgeSettings, folder: Path) -> JudgeReport:
    graph = folder / GRAPH_NAME
    _export(train(settings), graph)
    images, expected = _scenes("test", settings.test_scenes, settings.seed + 1, jitter=1.0)
    seen = compare(read(graph, images), expected)
    record = JudgeReport(
        digest=sha256_file(graph),
        accuracy=float(np.mean(seen.correct)),
        digit_accuracy=float(np.mean(seen.digit)),
        colour_accuracy=float(np.mean(seen.colour)),
        position_accuracy=float(np.mean(seen.position)),
        scenes=len(images),
    )
    _log.info("judge: %s", record)
    write_json(folder / RECORD_NAME, record.model_dump())
    return record


def _export(judge: Judge, graph: Path) -> None:
    """Write the judge as one ONNX graph, without the exporter's notes on source lines: equal weights, equal bytes."""
    import onnx

    images = torch.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package that is absent
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Reader(judge).eval(), (images,), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
        )
    assert program is not None
    model = program.model_proto
    parts = (model, model.graph)
    for item in (*parts, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.save(model, graph)


def train(settings: JudgeSettings) -> Judge:
    """Train on warped, blurred and noisy crops of scenes of judge digits; the blur is about that of a tokenizer."""
    random = torch.Generator().manual_seed(settings.seed)
    crops, digit, colour = _training_crops(settings)
    occupied, empty = torch.nonzero(digit > 0).flatten(), torch.nonzero(digit == 0).flatten()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        judge = Judge(settings.width).train()
        optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, max(settings.steps, 2))
        for step in range(settings.steps):
            chosen = _batch(settings, occupied, empty, random)
            digit_logits, colour_logits = judge(_augment(crops[chosen], blur=step % 2 == 1, random=random))
            has_digit = digit[chosen] > 0
            loss = F.cross_entropy(digit_logits, digit[chosen], label_smoothing=settings.label_smoothing)
            loss = loss + F.cross_entropy(colour_logits[has_digit], colour[chosen][has_digit])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report(step + 1, settings.steps, "training the judge")
    return judge.eval()


def _scenes(split: digits.Split, count: int, seed: int, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [count, 64, 64, 3] and what stands in them, int64 [count, 4, 2]."""
    drawn = scenes.sample_specs(count, seed)
    source = digits.load_split(split)
    images = render.render_scenes(source.images, source.labels, drawn, seed, jitter)
    return images, scenes.label_arrays([scene.labels for scene in drawn])


def _training_crops(settings: JudgeSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Crops [n, 3, 32, 32] in 0..1, digit classes [n] (0: empty) and colour classes [n] (-1: empty)."""
    images, expected = _scenes("judge", settings.scenes, settings.seed, settings.jitter)
    labels = torch.from_numpy(expected).flatten(0, 1)
    return slot_crops(torch.from_numpy(np.ascontiguousarray(images))), labels[:, 0] + 1, labels[:, 1]


def _batch(settings: JudgeSettings, occupied: Tensor, empty: Tensor, random: torch.Generator) -> Tensor:
    count = round(settings.batch * settings.occupied_share)
    first = occupied[torch.randint(len(occupied), (count,), generator=random)]
    second = empty[torch.randint(len(empty), (settings.batch - count,), generator=random)]
    return torch.cat([first, second])


def _augment(crops: Tensor, *, blur: bool, random: torch.Generator) -> Tensor:
    """Bend and shear the strokes, soften every second batch, add noise: [n, 3, 32, 32] to the same."""
    count = len(crops)
    affine = torch.eye(2, 3).repeat(count, 1, 1)
    affine[:, :, :2] += 0.04 * torch.randn(count, 2, 2, generator=random)
    affine[:, :, 2] += 0.02 * torch.randn(count, 2, generator=random)
    bend = 0.035 * torch.randn(count, 2, _WARP_POINTS, _WARP_POINTS, generator=random)
    bend = F.interpolate(bend, (CROP_SIZE, CROP_SIZE), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(affine, list(crops.shape), align_corners=False) + bend
    warped = F.grid_sample(crops, grid, padding_mode="border", align_corners=False)
    if blur:
        warped = F.avg_pool2d(F.pad(warped, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return warped + 0.05 * torch.randn(warped.shape, generator=random)

"""Write the digit world to a folder as WebDataset tars, exactly as a user's own data would come.

The evaluation scenes come first in the series, so that their names are the same whatever the number of training
scenes: one scene for each held-out caption, from test digits, always the same. Training scenes follow, from
generation digits and captions that are not held out, with planted copies and damaged samples among them. Stories, where
some are wanted, come last: what is before them is the same with and without.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import UsageError
from common.files import atomic_path
from common.progress import report
from components.ingest.digit_world.archive import Members, write_tars
from components.ingest.digit_world.broken import KINDS, damage
from components.ingest.digit_world.digits import LICENSE, Split, load_split
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.digit_world.render import render_scenes
from components.ingest.digit_world.scenes import Scene, all_scenes, sample_specs
from components.ingest.digit_world.settings import DigitWorldSettings
from components.ingest.digit_world.stories import Story, request, story_specs

TAR_PREFIX = "digit-world"
_EVALUATION_SEED = 20_000_003
_STORY_SEED_STEP = 500_000_003
_RENDER_BATCH = 500


@dataclass(frozen=True)
class DigitWorld:
    """What was written."""

    folder: Path
    tars: tuple[Path, ...]
    evaluation_scenes: int
    training_scenes: int
    story_scenes: int
    planted_duplicates: int
    broken_members: int


def write_digit_world(folder: Path, settings: DigitWorldSettings) -> DigitWorld:
    """Build the tars in `folder`, whole or not at all; the same settings give the same bytes.

    An earlier digit world there is replaced. Raises `UsageError` where the folder holds anything else.
    """
    _refuse_foreign_files(folder)
    evaluation = evaluation_scenes()
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        names = [
            tar.name
            for tar in write_tars(temporary, TAR_PREFIX, _samples(evaluation, settings), settings.scenes_per_tar)
        ]
    return DigitWorld(
        folder=folder,
        tars=tuple(folder / name for name in names),
        evaluation_scenes=len(evaluation),
        training_scenes=settings.scenes,
        story_scenes=settings.stories * settings.scenes_per_story,
        planted_duplicates=settings.planted_duplicates,
        broken_members=settings.broken_members,
    )


def evaluation_scenes() -> list[Scene]:
    """The scenes of the held-out captions, one each, always in the same order."""
    return [scene for scene in all_scenes() if is_evaluation_caption(scene.caption)]


def _refuse_foreign_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file", where=str(folder), fix="name a folder")
    foreign = [path.name for path in folder.glob("*") if not path.match(f"{TAR_PREFIX}-*.tar")]
    if foreign:
        raise UsageError(
            f"the folder holds other files, such as {foreign[0]}", where=str(folder), fix="name an empty folder"
        )


def _samples(evaluation: list[Scene], settings: DigitWorldSettings) -> Iterator[Members]:
    total = len(evaluation) + settings.scenes + settings.stories * settings.scenes_per_story
    done = 0
    for scene, png in _pictures(evaluation, "test", _EVALUATION_SEED):
        yield _intact(scene, png)
        done += 1
        report(done, total, "drawing scenes")
    training = sample_specs(settings.scenes, settings.seed, allowed=lambda caption: not is_evaluation_caption(caption))
    copied, broken = _planted_at(settings)
    kind = 0
    for number, (scene, png) in enumerate(_pictures(training, "generation", settings.seed)):
        yield _intact(scene, png)
        for _ in range(copied[number]):
            yield _intact(scene, png)
        for _ in range(broken[number]):
            yield damage(KINDS[kind % len(KINDS)], png, scene.caption, _metadata(scene))
            kind += 1
        report(done + number + 1, total, "drawing scenes")
    done += settings.scenes
    for number, sample in enumerate(_story_samples(settings)):
        yield sample
        report(done + number + 1, total, "drawing scenes")


def training_stories(settings: DigitWorldSettings) -> list[Story]:
    """The stories that these settings add, of captions that are not held out."""
    return story_specs(
        settings.stories,
        settings.scenes_per_story,
        settings.seed,
        allowed=lambda caption: not is_evaluation_caption(caption),
        name=f"story-{settings.seed}",
    )


def _story_samples(settings: DigitWorldSettings) -> Iterator[Members]:
    stories = training_stories(settings)
    places = [(story, position) for story in stories for position in range(len(story.scenes))]
    scenes = [story.scenes[position] for story, position in places]
    pictures = _pictures(scenes, "generation", settings.seed + _STORY_SEED_STEP)
    for (story, position), (scene, png) in zip(places, pictures, strict=True):
        place = {"document_id": story.document_id, "position": position}
        metadata = place | {"labels": scene.labels | {"request": request(scene)}, "license": LICENSE}
        yield ("png", png), ("txt", scene.caption.encode()), ("json", json.dumps(metadata, sort_keys=True).encode())


def _planted_at(settings: DigitWorldSettings) -> tuple[np.ndarray, np.ndarray]:
    """How many copies and how many damaged versions of each training scene follow it: int64 [scenes], twice."""
    random = np.random.Generator(np.random.PCG64([settings.seed, 3]))
    counts = [
        np.bincount(random.integers(settings.scenes, size=count), minlength=settings.scenes)
        for count in (settings.planted_duplicates, settings.broken_members)
    ]
    return counts[0], counts[1]


def _pictures(scenes: list[Scene], split: Split, seed: int) -> Iterator[tuple[Scene, bytes]]:
    digits = load_split(split)
    for batch, start in enumerate(range(0, len(scenes), _RENDER_BATCH)):
        part = scenes[start : start + _RENDER_BATCH]
        pixels = render_scenes(digits.images, digits.labels, part, seed=seed + 1_000_003 * batch)
        for scene, image in zip(part, pixels, strict=True):
            yield scene, _encode(image)


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _intact(scene: Scene, png: bytes) -> Members:
    return ("png", png), ("txt", scene.caption.encode()), ("json", _metadata(scene))


def _metadata(scene: Scene) -> bytes:
    return json.dumps({"labels": scene.labels, "license": LICENSE}, sort_keys=True).encode()

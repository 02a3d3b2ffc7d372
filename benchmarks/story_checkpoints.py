"""The story generators that the gate's benchmark compares, kept under their digests, and how each is made again.

    python -m benchmarks.story_checkpoints            verify what is kept
    python -m benchmarks.story_checkpoints --retrain  make them anew (about half an hour on one core)

They are kept in 16 bits and computed in 32, and read the tokens of `benchmarks/weights/tokenizers`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import checkpoints
from benchmarks.report import commit
from benchmarks.stories import SceneTokens, training_scenes
from benchmarks.story_training import CURRICULUM, DETAIL_STEPS, TRAINING_STORIES, train_details, train_story
from common.errors import DigestMismatchError, UsageError
from common.files import atomic_path, read_json, sha256_file, write_json
from model.checkpoint import load_checkpoint, load_tensors, save_tensors
from model.tokenizers.bundle import TokenizerBundle
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.story import StoryGenerator
from model.transformer.story_config import StoryConfig

STORE = checkpoints.STORE / "stories"
GATED, UNGATED, DETAILS = "gated", "ungated", "details"
ABOUT = {
    GATED: "looks back through the gate",
    UNGATED: "its twin without a gate",
    DETAILS: "the details of a sketch, from the sketch alone",
}
_INDEX, _WEIGHTS, _CONFIG = "index.json", "model.safetensors", "config.json"
_COMMAND = "python -m benchmarks.story_checkpoints --retrain"
_DETAIL_TEXT_LENGTH = 4


def load_story(name: str, store: Path = STORE) -> StoryGenerator:
    """A story generator in fp32. Raises `DigestMismatchError` where it is not the one that was kept."""
    folder = _verified(name, store)
    model = StoryGenerator(StoryConfig.parse(read_json(folder / _CONFIG), where=str(folder / _CONFIG)))
    model.load_state_dict({key: value.float() for key, value in load_tensors(folder / _WEIGHTS).items()})
    return model.eval()


def load_details(store: Path = STORE) -> Generator:
    """What turns sketches into images. Raises `DigestMismatchError` likewise."""
    return load_checkpoint(_verified(DETAILS, store))


def describe(name: str, store: Path = STORE) -> dict[str, Any]:
    """What is known of a checkpoint: digest, steps, seconds, parameters, commit."""
    return read_json(store / _INDEX)["checkpoints"][name]


def blank_prompt(bundle: TokenizerBundle) -> list[int]:
    """The prompt of the details, which says nothing."""
    return bundle.text.unconditional_prompt(_DETAIL_TEXT_LENGTH)


def _verified(name: str, store: Path) -> Path:
    folder, kept = store / name, describe(name, store)
    if kept["tokenizers_digest"] != checkpoints.load_tokenizers().digest:
        raise DigestMismatchError(
            "it was trained with other tokenizers than those that are kept", where=str(folder), fix=_COMMAND
        )
    if sha256_file(folder / _WEIGHTS) != kept["sha256"]:
        raise DigestMismatchError("the weights are not those that were kept", where=str(folder), fix=_COMMAND)
    return folder


def retrain(store: Path = STORE, only: list[str] | None = None) -> None:
    """Make the named checkpoints anew; all, if none is named. Raises `UsageError` for a name that nobody knows."""
    names = only or list(ABOUT)
    unknown = sorted(set(names) - ABOUT.keys())
    if unknown:
        raise UsageError(f"there is no checkpoint {', '.join(unknown)}", fix=f"name some of {', '.join(ABOUT)}")
    bundle = checkpoints.load_tokenizers()
    shape = StoryConfig(text_vocabulary=bundle.text.vocabulary, visual_levels=bundle.visual.config.levels)
    pool = training_scenes(bundle, shape.text_length, TRAINING_STORIES)
    for name in names:
        started = time.monotonic()
        model, last = _train(name, shape, bundle, pool)
        _keep(name, model, last, time.monotonic() - started, bundle, store)


def _train(
    name: str, shape: StoryConfig, bundle: TokenizerBundle, pool: SceneTokens
) -> tuple[StoryGenerator | Generator, dict[str, float]]:
    if name != DETAILS:
        return train_story(name == GATED, shape, pool)
    config = GeneratorConfig(
        text_vocabulary=shape.text_vocabulary,
        text_length=_DETAIL_TEXT_LENGTH,
        visual_levels=shape.visual_levels,
        coarse_grid=shape.coarse_grid,
        num_hidden_layers=2,
        plan_tokens=0,
    )
    return train_details(config, blank_prompt(bundle), pool)


def _keep(
    name: str,
    model: StoryGenerator | Generator,
    last: dict[str, float],
    seconds: float,
    bundle: TokenizerBundle,
    store: Path,
) -> None:
    """Write a checkpoint into the store in 16 bits, and what is known of it."""
    halved = {key: value.half() if value.dtype == torch.float32 else value for key, value in model.state_dict().items()}
    with atomic_path(store / name) as folder:
        folder.mkdir(parents=True)
        save_tensors(folder / _WEIGHTS, halved)
        write_json(folder / _CONFIG, model.config.model_dump(mode="json"))
    index: dict[str, Any] = read_json(store / _INDEX) if (store / _INDEX).exists() else {"checkpoints": {}}
    index["checkpoints"][name] = {
        "about": ABOUT[name],
        "sha256": sha256_file(store / name / _WEIGHTS),
        "bytes": (store / name / _WEIGHTS).stat().st_size,
        "steps": DETAIL_STEPS if name == DETAILS else sum(lesson.steps for lesson in CURRICULUM),
        "seconds": round(seconds, 1),
        "parameters": count(model),
        "last": {key: round(value, 4) for key, value in last.items()},
        "tokenizers_digest": bundle.digest,
        "commit": commit(),
        "command": f"{_COMMAND} --only {name}",
    }
    write_json(store / _INDEX, index)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify the story generators of the benchmarks, or make them anew.")
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--only", nargs="+", help="some of them")
    parser.add_argument("--store", type=Path, default=STORE, help="where they are kept")
    chosen = parser.parse_args(arguments)
    if chosen.retrain:
        retrain(chosen.store, chosen.only)
    for name in read_json(chosen.store / _INDEX)["checkpoints"]:
        _verified(name, chosen.store)
        print(f"{name}: {describe(name, chosen.store)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The checkpoints that benchmarks compare, kept under their digests, and how each is made again.

    python -m benchmarks.checkpoints            verify what is kept
    python -m benchmarks.checkpoints --retrain  make all of them anew (about an hour on two cores)

All are trained by the pipeline's own step on the quickstart's data, with its recipe; they differ in what they predict
and on which grid. They are kept in 16 bits, and computed in 32. The tokenizers stay those that are kept: whatever was
trained with them would be lost with them, the checkpoints of `story_checkpoints` too. Where there are none, `--retrain`
trains them first.
"""

import argparse
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common.errors import DigestMismatchError, UsageError
from common.files import atomic_path, read_json, sha256_file, write_json
from components.train.settings import TrainingSettings
from model.transformer.config import GeneratorConfig, ModelSettings

if TYPE_CHECKING:
    from model.tokenizers.bundle import TokenizerBundle
    from model.transformer.model import Generator

STORE = Path(__file__).resolve().parent / "weights"
_INDEX, _WEIGHTS, _TOKENIZERS = "index.json", "model.safetensors", "tokenizers"
_COMMAND = "python -m benchmarks.checkpoints --retrain"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is trained, where it differs from the quickstart."""

    about: str
    steps: int
    objective: str = "parallel"
    global_batch_size: int = 32
    processes: int = 2
    detail_stages: int = 1
    """Grids after the sketch, which has so many times half the image's 16x16 cells to a side."""
    adapts: str | None = None
    """The checkpoint that it starts from."""
    unconditional_share: float = 0.0
    """Of the training prompts that say nothing, for guidance."""
    shape: dict[str, Any] = field(default_factory=dict)

    def training(self) -> TrainingSettings:
        return TrainingSettings.model_validate(
            {
                "objective": self.objective,
                "steps": self.steps,
                "global_batch_size": self.global_batch_size,
                "processes": self.processes,
                "initialize_from": "parent" if self.adapts else "scratch",
                "masking": {"unconditional_share": self.unconditional_share},
            }
        )


RECIPES = {
    "progressive": Recipe(about="ours: plan, sketch in parallel, details", steps=2200),
    "next-token": Recipe(about="the sketch cell by cell, then the details", steps=2200, objective="next_token"),
    "adapted": Recipe(about="next-token, adapted to parallel prediction", steps=220, adapts="next-token"),
    "guided": Recipe(about="ours, one prompt in ten without words", steps=2200, unconditional_share=0.1),
    "three-grids": Recipe(
        about="ours, from a sketch of 4x4 cells in two stages of details", steps=2200, detail_stages=2
    ),
    "raster": Recipe(
        about="all 256 cells one by one",
        steps=2500,
        objective="next_token",
        global_batch_size=16,
        detail_stages=0,
        shape={"plan_tokens": 0, "sketch_window": None},
    ),
    "one-scale": Recipe(
        about="all 256 cells in parallel, without a sketch",
        steps=3000,
        global_batch_size=16,
        detail_stages=0,
        shape={"plan_tokens": 0, "sketch_window": None},
    ),
    "large": Recipe(
        about="ours, twice as wide and a layer deeper, for INT8",
        steps=3200,
        processes=1,
        shape={
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
}
"""In the order in which they are trained: a checkpoint that another one adapts comes before it."""
MOST_STAGES = max(recipe.detail_stages for recipe in RECIPES.values())


def load(name: str, store: Path = STORE) -> "Generator":
    """The generator `name` in fp32. Raises `DigestMismatchError` where it is not the one that was kept."""
    from model.checkpoint import load_checkpoint

    folder, index = store / name, _index(store)
    kept = index["checkpoints"][name]
    if kept["tokenizers_digest"] != index["tokenizers_digest"]:
        raise DigestMismatchError(
            "it was trained with other tokenizers than those that are kept", where=str(folder), fix=_COMMAND
        )
    if sha256_file(folder / _WEIGHTS) != kept["sha256"]:
        raise DigestMismatchError("the weights are not those that were kept", where=str(folder), fix=_COMMAND)
    return load_checkpoint(folder)


def load_tokenizers(store: Path = STORE) -> "TokenizerBundle":
    """The tokenizers that every checkpoint was trained with. Raises `DigestMismatchError` likewise."""
    from model.tokenizers.bundle import TokenizerBundle

    bundle = TokenizerBundle.load(store / _TOKENIZERS)
    if bundle.digest != _index(store)["tokenizers_digest"]:
        raise DigestMismatchError(
            "the tokenizers are not those that were kept", where=str(store / _TOKENIZERS), fix=_COMMAND
        )
    return bundle


def describe(name: str, store: Path = STORE) -> dict[str, Any]:
    """What is known of a checkpoint: digest, steps, seconds, parameters, commit."""
    return _index(store)["checkpoints"][name]


def _index(store: Path) -> dict[str, Any]:
    return read_json(store / _INDEX)


def retrain(work: Path, store: Path = STORE, only: list[str] | None = None) -> None:
    """Make the named checkpoints (all, if none is named) and their data anew, for the tokenizers that are kept; `work` may
    hold the data of an earlier call, which is then used. Raises `UsageError` for a name that nobody knows, and
    `DigestMismatchError` where that data is the tokens of other tokenizers."""
    from benchmarks.report import commit

    names = only or list(RECIPES)
    unknown = sorted(set(names) - RECIPES.keys())
    if unknown:
        raise UsageError(f"there is no checkpoint {', '.join(unknown)}", fix=f"name some of {', '.join(RECIPES)}")
    shards, tokenizers, kept = work / "data" / "shards", work / "data" / _TOKENIZERS, store / _TOKENIZERS
    if not shards.exists():
        make_data(work / "data", kept if kept.exists() else None)
    if kept.exists():
        _require_same(tokenizers, kept)
    source = commit()  # before the first new weights make the checkout differ from it
    for name in names:
        _train(name, shards, tokenizers, work, store)
        _keep(name, work / name, tokenizers, store, source)


def _require_same(tokenizers: Path, kept: Path) -> None:
    from model.tokenizers.bundle import TokenizerBundle

    found, expected = (TokenizerBundle.load(folder).digest for folder in (tokenizers, kept))
    if found != expected:
        raise DigestMismatchError(
            f"these are the tokenizers {found[:12]}, kept are {expected[:12]}",
            where=str(tokenizers),
            fix="name another --work, or remove its data",
        )


def make_data(folder: Path, parent_tokenizers: Path | None = None) -> None:
    """The quickstart's tokens, by the pipeline's own steps: `folder/{tokenizers,shards}`, with every grid that a recipe
    draws. New tokenizers are trained unless there are some to go on with."""
    from components.curate.curate import curate
    from components.ingest.ingest import ingest
    from components.tokenize.tokenize import tokenize
    from components.validate.validate import validate
    from pipelines.settings import load as load_settings

    settings = load_settings("quickstart")
    made = {name: folder / name for name in ("samples", "evaluation_set", "raw", "curated", "valid", "docs", "source")}
    ingest(settings.data, made["source"], made["samples"], made["evaluation_set"])
    validate(settings.validation, made["samples"], made["raw"], made["docs"], curated=False)
    curate(settings.curation, made["samples"], made["evaluation_set"], made["raw"], made["curated"])
    validate(settings.validation, made["curated"], made["valid"], made["docs"], curated=True)
    tokenize(
        settings.tokenizer.model_copy(update={"detail_stages": MOST_STAGES}),
        made["curated"],
        made["valid"],
        made["evaluation_set"],
        parent_tokenizers,
        folder / _TOKENIZERS,
        folder / "shards",
    )


def _train(name: str, shards: Path, tokenizers: Path, work: Path, store: Path) -> None:
    from components.train.train import generator_config, train
    from model.data.shards import Shards
    from model.tokenizers.bundle import TokenizerBundle

    recipe = RECIPES[name]
    shape = generator_config(
        ModelSettings.model_validate(recipe.shape), TokenizerBundle.load(tokenizers), Shards(shards, "train")
    )
    shape = GeneratorConfig.model_validate(
        shape.model_dump()
        | {
            "coarse_grid": shape.grids[MOST_STAGES - recipe.detail_stages],
            "detail_stages": max(recipe.detail_stages, 1),
        }
        | ({} if recipe.detail_stages else {"fine_layers": 0})
    )
    parent = None
    if recipe.adapts:  # the whole one of an earlier call, or else what is kept of it
        parent = work / recipe.adapts if (work / recipe.adapts).exists() else store / recipe.adapts
    shutil.rmtree(work / name, ignore_errors=True)
    train(recipe.training(), shape, shards, tokenizers, parent, work / f"{name}-work", work / name)


def _keep(name: str, checkpoint: Path, tokenizers: Path, store: Path, source: str) -> None:
    """Copy a checkpoint into the store in 16 bits, and write what is known of it; `source` is the commit that trained
    it."""
    import torch

    from model.checkpoint import load_tensors, save_tensors
    from model.tokenizers.bundle import TokenizerBundle

    weights = load_tensors(checkpoint / _WEIGHTS)
    halved = {key: value.half() if value.dtype == torch.float32 else value for key, value in weights.items()}
    with atomic_path(store / name) as folder:
        folder.mkdir(parents=True)
        save_tensors(folder / _WEIGHTS, halved)
        shutil.copyfile(checkpoint / "config.json", folder / "config.json")
    if not (store / _TOKENIZERS).exists():
        shutil.copytree(tokenizers, store / _TOKENIZERS)
    training = read_json(checkpoint / "training.json")
    index: dict[str, Any] = _index(store) if (store / _INDEX).exists() else {"checkpoints": {}}
    index["tokenizers_digest"] = TokenizerBundle.load(tokenizers).digest
    index["checkpoints"][name] = {
        "sha256": sha256_file(store / name / _WEIGHTS),
        "bytes": (store / name / _WEIGHTS).stat().st_size,
        "about": RECIPES[name].about,
        "commit": source,
        "command": f"{_COMMAND} --only {name}",
        **{
            key: training[key]
            for key in ("steps", "seconds", "ranks", "precision", "parameters", "heldout_loss", "tokenizers_digest")
        },
    }
    write_json(store / _INDEX, index)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify the checkpoints of the benchmarks, or make them anew.")
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--only", nargs="+", help="some of them")
    parser.add_argument("--work", type=Path, help="a folder that keeps the data and the whole checkpoints")
    chosen = parser.parse_args(arguments)
    if chosen.retrain:
        started = time.monotonic()
        with TemporaryDirectory(prefix="emuflow-checkpoints-") as temporary:
            retrain(chosen.work or Path(temporary), only=chosen.only)
        print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    load_tokenizers()
    for name in _index(STORE)["checkpoints"]:
        load(name)
        print(f"{name}: {describe(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

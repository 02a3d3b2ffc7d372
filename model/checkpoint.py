"""Checkpoints: `config.json`, `model.safetensors` and the tokenizers they were trained with."""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import DataError, UntrustedFileError
from common.files import atomic_path, read_json_object, write_json
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_UNSAFE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def save_checkpoint(folder: Path, model: Generator, tokenizers: Path, training: dict[str, Any]) -> None:
    """Write a checkpoint folder whole: weights, configuration, a copy of `tokenizers`, and `training.json`."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_tensors(temporary / WEIGHTS_FILE, model.state_dict())
        write_json(temporary / CONFIG_FILE, model.config.model_dump(mode="json"))
        write_json(temporary / "training.json", training)
        shutil.copytree(tokenizers, temporary / "tokenizers")


def load_checkpoint(folder: Path) -> Generator:
    """The generator of a checkpoint folder, in fp32 and evaluation mode.

    Raises `UntrustedFileError` where only pickled weights are found, `DataError` where the configuration is missing or
    broken or the weights do not fit it, `SettingsError` that names the value which no generator can have.
    """
    config = GeneratorConfig.parse(read_config(folder), where=str(folder / CONFIG_FILE))
    model = Generator(config)
    try:
        model.load_state_dict(load_tensors(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise DataError(f"the weights do not fit config.json: {error}", where=str(folder)) from None
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint's `config.json` says. Raises `DataError` where it is missing or broken."""
    return read_json_object(folder / CONFIG_FILE, fix="name the folder of a checkpoint")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors under a temporary name, then rename."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors. A pickle, whatever its name, is refused with `UntrustedFileError`: loading it can run code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        pickles = [other.name for other in path.parent.glob("*") if other.suffix in _UNSAFE_SUFFIXES]
        if pickles:
            raise UntrustedFileError(
                f"only pickled weights here: {', '.join(pickles)}",
                where=str(path.parent),
                fix="convert them to safetensors",
            )
        raise DataError("weights are missing", where=str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UntrustedFileError(
            f"not a safetensors file ({error})", where=str(path), fix="convert the weights to safetensors"
        ) from None

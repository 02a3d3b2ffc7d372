"""Checkpoints in Hugging Face's form (`config.json` and safetensors, Llama's names, `q_norm`/`k_norm`) as ours.

A tensor of ours is one of theirs, or several of them one below the other: queries, keys and values; gate and up. They
are converted shard by shard, so that memory holds one shard of the result, whatever the size of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DataError, UntrustedFileError
from common.files import atomic_path, read_json_object, write_json
from model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_tensors, read_config, save_tensors
from model.transformer.config import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer.decoder import Decoder

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
SHARD_BYTES = 4 << 30
_BODY = "model"
"""What all of their names but the head's begin with."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "rope_scaling": None, "use_sliding_window": False}
"""What our decoder is, where a configuration says anything about it."""


@dataclass(frozen=True)
class Imported:
    """What `import_checkpoint` made."""

    config: DecoderConfig
    shards: int


@dataclass(frozen=True)
class _Target:
    """One tensor of ours, and which of theirs make it."""

    name: str
    sources: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def values(self) -> int:
        return sum(prod(shape) for shape in self.shapes)


def read_shape(folder: Path) -> DecoderConfig:
    """The shape that a Hugging Face `config.json` states. Raises `DataError` where it is missing or broken, or names a value
    which our decoder does not have, `SettingsError` for a size that is missing or impossible."""
    path, content = folder / CONFIG_FILE, read_config(folder)
    for name, value in _REQUIRED.items():
        if content.get(name, value) != value:
            raise DataError(f"{name} is {content[name]!r}, only {value!r} is supported", where=str(path))
    rope = content.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise DataError(f"rope_parameters is {rope!r}, not an object", where=str(path))
    if rope.get("rope_type", "default") != "default":
        raise DataError(f"rope_type is {rope['rope_type']!r}, only 'default' is supported", where=str(path))
    names = set(DecoderConfig.model_fields) - {"architecture"}
    known = {name: content[name] for name in names & set(content)}
    if "rope_theta" in rope:
        known["rope_theta"] = rope["rope_theta"]
    if "rope_theta" not in known:  # a guess would fit every shape, and turn every query wrongly
        raise DataError("rope_theta is missing, at the top and in rope_parameters", where=str(path))
    hidden, heads = known.get("hidden_size"), known.get("num_attention_heads")
    if known.get("head_dim") is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        known["head_dim"] = hidden // heads
    return DecoderConfig.parse(known, where=str(path))


def import_checkpoint(folder: Path, output: Path, *, shard_bytes: int = SHARD_BYTES) -> Imported:
    """Write the checkpoint of `folder` as ours: `config.json`, sharded weights with their index, the tokenizer's files.

    Raises what `read_shape` does, `DataError` that names the tensor which is missing, left over or of another shape than
    the configuration says, `UntrustedFileError` where there are only pickles. Nothing is left under `output` then.
    """
    config = read_shape(folder)
    files = _weight_files(folder)
    targets = _targets(config)
    _check_names(targets, files, folder, config)
    with atomic_path(output) as temporary, _Reader(files) as reader:
        temporary.mkdir()
        _check_shards(files, reader, config)
        _check_shapes(targets, reader)
        shards = list(_shards(targets, reader, shard_bytes))
        where: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_tensors(temporary / name, {target.name: reader.read(target) for target in shard})
            where |= {target.name: name for target in shard}
        write_json(temporary / INDEX_FILE, {"metadata": {"parameters": config.parameter_count}, "weight_map": where})
        write_json(temporary / CONFIG_FILE, config.model_dump(mode="json"))
        (temporary / "tokenizers").mkdir()
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                (temporary / "tokenizers" / name).write_bytes((folder / name).read_bytes())
    return Imported(config, len(shards))


class _Reader:
    """Reads single tensors out of safetensors files that stay open meanwhile."""

    def __init__(self, files: dict[str, Path]):
        self._files, self._open = files, {}

    def __enter__(self) -> "_Reader":
        from safetensors import SafetensorError, safe_open

        for path in set(self._files.values()):
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UntrustedFileError(f"not a safetensors file ({error})", where=str(path)) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def names(self, path: Path) -> set[str]:
        return set(self._open[path].keys())

    def slice(self, name: str) -> Any:
        path = self._files[name]
        if name not in self.names(path):
            raise DataError(f"tensor {name} is missing", where=str(path))
        return self._open[path].get_slice(name)

    def read(self, target: _Target) -> "Tensor":
        import torch

        parts = [self._open[self._files[name]].get_tensor(name) for name in target.sources]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            weight_map = dict(read_json_object(index)["weight_map"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not an index of weights ({type(error).__name__})", where=str(index)) from None
        foreign = [file for file in weight_map.values() if Path(str(file)).name != file]
        if foreign:
            raise UntrustedFileError(f"the index names a file elsewhere: {foreign[0]!r}", where=str(index))
        missing = sorted({file for file in weight_map.values() if not (folder / file).is_file()})
        if missing:
            raise DataError(f"shard {missing[0]} is missing", where=str(folder))
        return {name: folder / file for name, file in weight_map.items()}
    single = folder / WEIGHTS_FILE
    if single.is_file():
        with _Reader({"": single}) as reader:
            return dict.fromkeys(reader.names(single), single)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UntrustedFileError(
            f"only pickled weights here: {', '.join(pickles)}", where=str(folder), fix="convert them to safetensors"
        )
    raise DataError("there are no weights", where=str(folder), fix=f"{WEIGHTS_FILE}, or shards with {INDEX_FILE}")


def _targets(config: DecoderConfig) -> list[_Target]:
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    targets = [_Target("embedding.weight", (f"{_BODY}.embed_tokens.weight",), ((vocabulary, hidden),))]
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{layer}.", f"{_BODY}.layers.{layer}."
        attention, mlp = theirs + "self_attn.", theirs + "mlp."
        targets += [
            _Target(ours + "attention_norm.weight", (theirs + "input_layernorm.weight",), ((hidden,),)),
            _Target(
                ours + "attention.qkv_proj.weight",
                tuple(f"{attention}{name}_proj.weight" for name in "qkv"),
                ((queries, hidden), (keys, hidden), (keys, hidden)),
            ),
            _Target(ours + "attention.o_proj.weight", (attention + "o_proj.weight",), ((hidden, queries),)),
            _Target(ours + "attention.q_norm.weight", (attention + "q_norm.weight",), ((config.head_dim,),)),
            _Target(ours + "attention.k_norm.weight", (attention + "k_norm.weight",), ((config.head_dim,),)),
            _Target(ours + "mlp_norm.weight", (theirs + "post_attention_layernorm.weight",), ((hidden,),)),
            _Target(
                ours + "mlp.gate_up_proj.weight",
                (mlp + "gate_proj.weight", mlp + "up_proj.weight"),
                ((inner, hidden), (inner, hidden)),
            ),
            _Target(ours + "mlp.down_proj.weight", (mlp + "down_proj.weight",), ((hidden, inner),)),
        ]
    targets.append(_Target("norm.weight", (f"{_BODY}.norm.weight",), ((hidden,),)))
    if not config.tie_word_embeddings:
        targets.append(_Target("head.weight", ("lm_head.weight",), ((vocabulary, hidden),)))
    return targets


def _check_names(targets: list[_Target], files: dict[str, Path], folder: Path, config: DecoderConfig) -> None:
    wanted = {name for target in targets for name in target.sources}
    missing, extra = sorted(wanted - set(files)), sorted(set(files) - wanted - _twice(config))
    for words, names in (("missing", missing), ("left over", extra)):
        if names:
            raise DataError(f"tensor {_first(names)} is {words}: the weights do not fit config.json", where=str(folder))


def _check_shards(files: dict[str, Path], reader: _Reader, config: DecoderConfig) -> None:
    """What a shard holds beyond what the index says of it would be passed over without a word."""
    for path in sorted(set(files.values())):
        extra = reader.names(path) - {name for name, file in files.items() if file == path} - _twice(config)
        if extra:
            raise DataError(
                f"tensor {_first(sorted(extra))} is left over: {INDEX_FILE} does not place it here", where=str(path)
            )


def _twice(config: DecoderConfig) -> set[str]:
    """What some write though it is there already: the matrix that is shared."""
    return {"lm_head.weight"} if config.tie_word_embeddings else set()


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_shapes(targets: list[_Target], reader: _Reader) -> None:
    for target in targets:
        for name, shape in zip(target.sources, target.shapes, strict=True):
            found = tuple(reader.slice(name).get_shape())
            if found != shape:
                raise DataError(f"tensor {name} is {list(found)}, but config.json makes it {list(shape)}")


def _shards(targets: list[_Target], reader: _Reader, shard_bytes: int) -> Iterator[list[_Target]]:
    """The targets in order, as many together as fit into `shard_bytes`."""
    shard: list[_Target] = []
    size = 0
    for target in targets:
        bits = int("".join(filter(str.isdigit, reader.slice(target.sources[0]).get_dtype().partition("_")[0])) or 32)
        target_bytes = target.values * bits // 8
        if shard and size + target_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(target)
        size += target_bytes
    yield shard


def load_decoder(folder: Path) -> "Decoder":
    """The decoder of an imported checkpoint, in the weights' own type and evaluation mode.

    Raises `DataError` where a file is missing or broken or the weights do not fit the configuration, `SettingsError` that
    names the value which no decoder can have.
    """
    import torch

    from model.transformer.decoder import Decoder

    config = DecoderConfig.parse(read_config(folder), where=str(folder / CONFIG_FILE))
    with torch.device("meta"):
        model = Decoder(config)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(_weight_files(folder).values())):
        tensors |= load_tensors(file)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit config.json: {error}", where=str(folder)) from None
    return model.eval()

"""The generators that `decoding_gpu` times: their shapes, what one image costs in products and bytes, and their memory.

A generator has the blocks of a preset. A code stands for 16 x 16 pixels, as Emu3.5's do, so that 1024 x 1024 pixels are
64 x 64 codes: a sketch of 16 x 16, and two stages of details. The vocabulary, of 15,360 codes, is what Mentzer et al. 2023
recommend for FSQ in place of 2^14.
"""

from dataclasses import dataclass

import torch

from common.errors import UsageError
from model.tokenizers.settings import VisualTokenizerConfig
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.plan import FINE_PER_CELL
from model.transformer.presets import PRESETS

SHAPES = {"nano": "nano", "1b": "1b", "8b": "qwen3-8b"}
"""What can be asked for, and the preset whose blocks it has."""
_PIXELS_PER_CODE = 16
_BYTES = 2
"""Of a number in bf16."""


def visual_config(preset: str) -> VisualTokenizerConfig:
    if preset == "nano":
        return VisualTokenizerConfig(patch_size=_PIXELS_PER_CODE)
    return VisualTokenizerConfig(levels=(8, 8, 8, 6, 5), patch_size=_PIXELS_PER_CODE, width=512, depth=4)


def generator_config(preset: str, size: int, sketch: int) -> GeneratorConfig:
    """For images of `size` x `size` pixels from a sketch of `sketch` x `sketch` cells; details pass two thirds of the blocks,
    as in the default shape. A sketch of all codes has no details: its next tokens are those of a raster.

    Raises `UsageError` where no number of doublings leads from the sketch to the size.
    """
    side, shape = size // _PIXELS_PER_CODE, PRESETS[SHAPES[preset]]
    stages = (side // sketch).bit_length() - 1 if sketch > 0 else -1
    if stages < 0 or sketch << stages != side or size % _PIXELS_PER_CODE:
        raise UsageError(
            f"a sketch of {sketch}x{sketch} cells does not double to an image of {size}x{size} pixels",
            where="--size, --sketch",
            fix=f"choose a size of {_PIXELS_PER_CODE} pixels times the sketch's side times 1, 2, 4, ...",
        )
    return GeneratorConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        fine_layers=2 * shape.num_hidden_layers // 3 if stages else 0,
        sketch_window=2,
        text_vocabulary=shape.vocab_size,
        text_length=16 if preset == "nano" else 128,
        visual_levels=visual_config(preset).levels,
        coarse_grid=(sketch, sketch),
        detail_stages=max(stages, 1),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes in bf16."""

    weights: int
    """Those that decoding uses: the plan's encoder serves training alone."""
    cache: int
    """Keys and values of the prompts, and of sketches that are drawn cell by cell."""


def memory(config: GeneratorConfig, batch: int) -> Memory:
    """Of `batch` images at once; the model is made on the meta device."""
    with torch.device("meta"):
        generator = without_encoder(Generator(config))
    tokens = config.text_length + config.coarse_tokens
    return Memory(
        weights=_BYTES * sum(weight.numel() for weight in generator.parameters()),
        cache=_BYTES * config.num_hidden_layers * batch * tokens * _key_and_value(config),
    )


def without_encoder(generator: Generator) -> Generator:
    """The same one, without what only training needs."""
    if generator.plan is not None:
        del generator.plan.encoder
    return generator


@dataclass(frozen=True)
class Work:
    """What a decode cannot do without."""

    flops: float = 0.0
    """Of products of matrices and of attention; the plan's own are small and left out."""
    moved: float = 0.0
    """Bytes: each weight once a pass, and the keys and values that the pass attends to."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.moved + other.moved)


def progressive_work(config: GeneratorConfig, visual: VisualTokenizerConfig, batch: int, *, previews: bool) -> Work:
    """`batch` prompts to images: the prompt, one pass over the sketch, one for each stage of details, the pixels."""
    cells, text = config.coarse_tokens, config.text_length
    pairs = cells * text + near_pairs(config.coarse_grid, config.sketch_window)
    sketch = _blocks(config, config.num_hidden_layers, batch, cells, pairs, text + cells)
    shown = config.grids if previews else config.grids[-1:]
    pixels = sum((_image_decoder(visual, batch, grid) for grid in shown), Work())
    return _prompt(config, batch) + sketch + _head(config, batch, cells) + _details(config, batch) + pixels


def next_token_work(config: GeneratorConfig, visual: VisualTokenizerConfig, batch: int) -> Work:
    """`batch` prompts to images: the prompt, one pass for each cell of the sketch, and from there as progressively."""
    cells, text, layers = config.coarse_tokens, config.text_length, config.num_hidden_layers
    sketch = Work()
    for cell in range(cells):
        seen = text + cell + 1
        sketch += _blocks(config, layers, batch, 1, seen, seen) + _head(config, batch, 1)
    return _prompt(config, batch) + sketch + _details(config, batch) + _image_decoder(visual, batch, config.grids[-1])


def near_pairs(grid: tuple[int, int], window: int | None) -> int:
    """How many cells all cells of a grid see together, themselves included: those within the `window`, None: all."""
    pairs = 1
    for side in grid:
        reach = side - 1 if window is None else min(window, side - 1)
        pairs *= side * (2 * reach + 1) - reach * (reach + 1)  # what lies beyond the edges is not seen
    return pairs


def _prompt(config: GeneratorConfig, batch: int) -> Work:
    """All blocks, but for the last one's feed-forward layer, which only the last token goes through."""
    text = config.text_length
    whole = _blocks(config, config.num_hidden_layers, batch, text, text * (text + 1) // 2, text)
    spared = 2.0 * batch * (text - 1) * 3 * config.hidden_size * config.intermediate_size
    return whole + Work(flops=-spared)


def _details(config: GeneratorConfig, batch: int) -> Work:
    work = Work()
    for rows, columns in config.grids[:-1]:
        cells, text = rows * columns, config.text_length
        pairs = cells * text + near_pairs((rows, columns), config.fine_window)
        work += _blocks(config, config.fine_layers, batch, cells, pairs, text + cells)
        work += _head(config, batch, cells, outputs=FINE_PER_CELL)
    return work


def _blocks(config: GeneratorConfig, layers: int, batch: int, tokens: int, pairs: int, keys: int) -> Work:
    """`layers` blocks over `tokens` of each image, in which `pairs` of a query and a key meet, of `keys` in all."""
    heads, head_dim = config.num_attention_heads, config.head_dim
    attention = 2 * (heads + config.num_key_value_heads) * head_dim * config.hidden_size
    weights = attention + 3 * config.hidden_size * config.intermediate_size
    flops = batch * (2 * tokens * weights + 4 * heads * head_dim * pairs)
    return Work(float(layers * flops), float(_BYTES * layers * (weights + batch * keys * _key_and_value(config))))


def _head(config: GeneratorConfig, batch: int, tokens: int, outputs: int = 1) -> Work:
    weights = outputs * config.visual_vocabulary * config.hidden_size
    return Work(2.0 * batch * tokens * weights, float(_BYTES * weights))


def _image_decoder(visual: VisualTokenizerConfig, batch: int, grid: tuple[int, int]) -> Work:
    ends = len(visual.levels) + 3 * visual.patch_size**2
    weights = visual.width * (ends + 10 * visual.depth * visual.width)  # a 3x3 and a 1x1 convolution a layer
    return Work(2.0 * batch * grid[0] * grid[1] * weights, float(_BYTES * weights))


def _key_and_value(config: GeneratorConfig) -> int:
    """Numbers of a token in one layer."""
    return 2 * config.num_key_value_heads * config.head_dim

"""The blocks' linear layers, which SmoothQuant folds, by their names in a checkpoint. What else is quantized, the graphs
tell (`static_int8.quantizable_layers`)."""

from collections.abc import Iterator

from torch import nn

from model.transformer.layers import Block
from model.transformer.model import Generator


def block_linears(block: Block) -> dict[str, nn.Linear]:
    """The four matrices of a decoder block, by their names inside it."""
    return {
        "attention.qkv_proj": block.attention.qkv_proj,
        "attention.o_proj": block.attention.o_proj,
        "mlp.gate_up_proj": block.mlp.gate_up_proj,
        "mlp.down_proj": block.mlp.down_proj,
    }


def block_layers(generator: Generator) -> Iterator[tuple[str, nn.Linear]]:
    """Every block's matrices with their full names, such as `blocks.0.mlp.down_proj`."""
    for index, block in enumerate(generator.decoder_blocks()):
        for name, linear in block_linears(block).items():
            yield f"blocks.{index}.{name}", linear

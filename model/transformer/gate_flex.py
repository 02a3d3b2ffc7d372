"""The modality gate in one block-sparse kernel, for GPUs: FlexAttention with a block mask made of the gates.

Compiled (`torch.compile`), closed blocks are neither loaded nor computed; run as it is, it computes all scores and gives
the same numbers. That, the kernel compiled for the CPU, and the sizes that torch's CUDA kernels accept are what is tested:
it has not run on a GPU yet.

Those kernels go through the mask's blocks in tiles, of `BLOCK_M` queries and `BLOCK_N` keys, and take a tile only where
it divides a block; torch's own tiles, 16 to 128 tokens, do not divide the gate's blocks. So both are chosen here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from model.transformer.gate import THRESHOLD, GatedInput

_SMALLEST_TILE = 16
"""Tokens, of what a GPU's matrix units take."""
_LARGEST_TILE = 64
_QUERY_TILE_BYTES, _KEY_TILE_BYTES = 16 << 10, 8 << 10
"""A program holds one tile of queries, and for each stage of its pipeline one of keys and one of values: with these it
needs no more of the card's shared memory than with torch's own tiles."""


def gated_attention_flex(given: GatedInput, kernel=flex_attention) -> Tensor:
    """The numbers of `gated_attention_masked`, [b, h, n, d]; `kernel` is `flex_attention` or what compiles it.

    There is no gradient for the gates, so it is not for training. Raises `ValueError` for several requests at once and for
    a bias among the own tokens. On CUDA torch refuses a head_dim below 16 (`NotImplementedError`).
    """
    if given.requests > 1 or given.own_bias is not None:
        raise ValueError("one request without a bias at a time: others go through gated_attention")
    keys = torch.cat([given.earlier_keys, given.own_keys], -2)
    values = torch.cat([given.earlier_values, given.own_values], -2)
    mask = gate_mask(given)
    return kernel(given.query, keys, values, block_mask=mask, scale=1.0, kernel_options=kernel_tiles(given.query, mask))


def gate_mask(given: GatedInput) -> BlockMask:
    """Which blocks of keys each block of queries sees: the open earlier ones, and its own tokens behind them.

    Queries are cut into the gate's query blocks, and keys into blocks of the earlier and own tokens' greatest common size;
    where that is no multiple of the smallest tile, several make one block, and the mask is asked within it.
    """
    own, blocks = given.own_keys.shape[-2], given.gates.shape[-2]
    size, unit = given.query.shape[-2] // blocks, math.gcd(*given.key_sizes, own)
    units = torch.tensor([key_size // unit for key_size in given.key_sizes], device=given.gates.device)
    seen = (given.gates > THRESHOLD).repeat_interleave(units, -1)
    seen = F.pad(seen, (0, own // unit), value=True)  # [b, h, q, blocks of keys]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[batch, head, query // size, key // unit]

    rows, columns = (_SMALLEST_TILE // math.gcd(_SMALLEST_TILE, each) for each in (size, unit))
    whole, some = seen, None
    if rows * columns > 1:
        whole, some = _merge(seen, rows, columns)
    # The kernel asks `sees` within the blocks that are seen in part, and in no others.
    full_counts, full = _listed(whole)
    counts, partial = (torch.zeros_like(full_counts), torch.zeros_like(full)) if some is None else _listed(some)
    return BlockMask.from_kv_blocks(
        counts,
        partial,
        full_counts,
        full,
        BLOCK_SIZE=(rows * size, columns * unit),
        mask_mod=sees,
        seq_lengths=(blocks * size, seen.shape[-1] * unit),
    )


def kernel_tiles(query: Tensor, mask: BlockMask) -> FlexKernelOptions:
    """The tiles in which a CUDA kernel goes through the blocks of `mask`: they divide them, and fit into shared memory."""
    row_bytes = query.element_size() << (query.shape[-1] - 1).bit_length()  # heads are padded to a power of two
    rows, columns = mask.BLOCK_SIZE
    # Without a prefix (`fwd_`), so that they also hold for torch's kernel of less than 128 queries.
    return {
        "BLOCK_M": _tile(rows, _QUERY_TILE_BYTES // row_bytes),
        "BLOCK_N": _tile(columns, _KEY_TILE_BYTES // row_bytes),
    }


def _merge(seen: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """`rows` times `columns` blocks as one: which are seen as a whole, and which in part; bool [b, h, q, k] -> twice
    [b, h, q / rows, k / columns], rounded up."""
    padded = F.pad(seen, (0, -seen.shape[-1] % columns, 0, -seen.shape[-2] % rows))
    count = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows)).sum((-3, -1))
    return count == rows * columns, (count > 0) & (count < rows * columns)


def _listed(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each query block sees, int32 [b, h, q], and their numbers in front of the others', [b, h, q, k]."""
    order = torch.argsort(seen.to(torch.int8), dim=-1, descending=True, stable=True)
    return seen.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _tile(block: int, most: int) -> int:
    """The largest power of two that divides `block`, a multiple of the smallest tile, and is about `most` or less."""
    largest = min(max(most, _SMALLEST_TILE), _LARGEST_TILE)
    return min(block & -block, 1 << largest.bit_length() - 1)

"""Which tokens see which: as a mask over all pairs and, for the cells of a large grid, as blocks that skip the rest.

A mask costs the square of the number of cells, whatever it hides. `LocalAttention` cuts the grid into square blocks; a
block's queries meet the keys of the block and of the `window` cells around it, and nothing else is computed: the cost
grows with the number of cells. The numbers are those of the mask.
"""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED_SCORE = -1e4
"""Added to the score of a key that must not be seen; finite, so that it survives bf16 and a row that sees nothing."""
_WORTH = 8
"""Blocks are used where a query meets at most one key in so many; below that, gathering costs more than it saves."""


def causal_bias(tokens: int, known: int = 0, device: torch.device | None = None) -> Tensor:
    """Every token sees all that was known and, of the new ones, itself and those before it: [tokens, known + tokens]."""
    return torch.full((tokens, known + tokens), MASKED_SCORE, device=device).triu(known + 1)


def window_bias(grid: tuple[int, int], window: int, text: int) -> Tensor:
    """A cell sees the whole prompt and the cells within `window`: [n, text + n]."""
    return F.pad(torch.where(near(*grid, window), 0.0, MASKED_SCORE), (text, 0))


def near(rows: int, columns: int, window: int) -> Tensor:
    """Which cells lie within `window` rows and columns of which: bool [n, n], n = rows * columns."""
    cell = torch.arange(rows * columns)
    row, column = cell // columns, cell % columns
    return (row[:, None] - row).abs().le(window) & (column[:, None] - column).abs().le(window)


class Window(nn.Module):
    """What the cells of a stage see of each other, beside the prompt; without a `window`, all see all.

    Where blocks compute far less they are used (`local`), elsewhere a mask is (`bias`, [n, t + n]).
    """

    bias: Tensor | None

    def __init__(self, grid: tuple[int, int], window: int | None, text_length: int):
        super().__init__()
        self.local, bias = None, None
        if window is not None:
            side = _block_side(*grid, window)
            if _WORTH * (side + 2 * window) ** 2 <= grid[0] * grid[1]:
                self.local = LocalAttention(grid, window, side)
            else:
                bias = window_bias(grid, window, text_length)
        self.register_buffer("bias", bias, persistent=False)

    def joint_bias(self, text_bias: Tensor, cells: int) -> Tensor:
        """For the prompt and the cells behind it in one pass, [t + n, t + n], from the prompt's own [t, t]; that alone
        where blocks do the cells' part. The prompt sees no cell."""
        if self.local is not None:
            return text_bias
        text = len(text_bias)
        of_cells = text_bias.new_zeros(cells, text + cells) if self.bias is None else self.bias
        return torch.cat([F.pad(text_bias, (0, cells), value=MASKED_SCORE), of_cells])


class LocalAttention(nn.Module):
    """Shapes use b = batch, h = heads, d = head_dim, n = cells, q = blocks, c = cells of a block, k = keys of a block."""

    order: Tensor
    """The cells block by block, int64 [n]."""
    place: Tensor
    """Where each cell is in `order`, int64 [n]."""
    around: Tensor
    """The cells that a block meets, int64 [q * k]; those beyond the grid's edge are any, and masked."""
    bias: Tensor
    """[q, c, k]."""

    def __init__(self, grid: tuple[int, int], window: int, side: int):
        super().__init__()
        rows, columns = grid
        if rows % side or columns % side:
            raise ValueError(f"a grid of {rows}x{columns} cannot be cut into blocks of {side}x{side}")
        self.cells, self.blocks = rows * columns, rows * columns // side**2
        number = torch.arange(self.cells).view(rows, columns)
        order = number.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).flatten()
        first_row, first_column = order[:: side**2] // columns, order[:: side**2] % columns
        offset = torch.arange(-window, side + window)
        row, column = first_row[:, None] + offset, first_column[:, None] + offset
        inside = ((row >= 0) & (row < rows))[:, :, None] & ((column >= 0) & (column < columns))[:, None]
        around = row.clamp(0, rows - 1)[:, :, None] * columns + column.clamp(0, columns - 1)[:, None]
        around, inside = around.flatten(1), inside.flatten(1)
        queries = order.view(self.blocks, -1)
        seen = near(rows, columns, window)[queries[:, :, None], around[:, None]] & inside[:, None]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)
        self.register_buffer("around", around.flatten(), persistent=False)
        self.register_buffer("bias", torch.where(seen, 0.0, MASKED_SCORE), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[b, h, n, d], scaled, and twice [b, h, t + n, d], the prompt's before the cells' -> [b, h, n, d]."""
        text = key.shape[2] - self.cells
        query = query[:, :, self.order]
        to_text = query @ key[:, :, :text].transpose(-1, -2)
        keys, values = self._gather(key[:, :, text:]), self._gather(value[:, :, text:])
        to_cells = query.unflatten(2, (self.blocks, -1)) @ keys.transpose(-1, -2) + self.bias.to(query.dtype)
        weights = torch.softmax(torch.cat([to_text, to_cells.flatten(2, 3)], -1), -1)
        mixed = (weights[..., text:].unflatten(2, (self.blocks, -1)) @ values).flatten(2, 3)
        return (mixed + weights[..., :text] @ value[:, :, :text])[:, :, self.place]

    def _gather(self, cells: Tensor) -> Tensor:
        """[b, h, n, d] -> [b, h, q, k, d]."""
        return cells[:, :, self.around].unflatten(2, (self.blocks, -1))


def _block_side(rows: int, columns: int, window: int) -> int:
    """The largest side that divides the grid, up to twice the window: a block's cells then are a quarter of its keys."""
    common, largest = gcd(rows, columns), max(2 * window, 1)
    return max(side for side in range(1, common + 1) if common % side == 0 and side <= largest)

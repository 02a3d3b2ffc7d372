"""Whole tensors from the ranks' pieces, and pieces from whole tensors: what a checkpoint holds knows no layout."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.parallel.cuts import Cut, cut_of
from model.parallel.tensor import TensorRanks


@torch.no_grad()
def load_whole(
    parts: Sequence[nn.Module],
    state: Mapping[str, Tensor],
    ranks: TensorRanks | None,
    write: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> None:
    """Give the layers of this rank their pieces of a whole model's state dict, by `write(target, piece)`.

    Raises `KeyError` for a tensor that is missing, `ValueError` for one of another shape.
    """
    for part in parts:
        for name, target in part.state_dict(keep_vars=True).items():
            piece = own_piece(target, state[name], ranks)
            if piece.shape != shape_of(target):
                raise ValueError(f"{name} is {tuple(piece.shape)}, not {tuple(shape_of(target))}")
            write(target, piece)


def shape_of(tensor: Tensor) -> torch.Size:
    """Of a parameter whose values ZeRO-3 has taken away, too."""
    return getattr(tensor, "ds_shape", tensor.shape)


def own_piece(target: Tensor, whole: Tensor, ranks: TensorRanks | None) -> Tensor:
    """What this rank has of a whole tensor that belongs to the parameter or buffer `target`."""
    cut = cut_of(target)
    if cut is None or ranks is None or whole.ndim == 0:
        return whole
    return cut.piece(whole, ranks.rank, ranks.ranks)


@torch.no_grad()
def gather_whole(
    parts: Sequence[nn.Module],
    ranks: TensorRanks | None,
    read: Callable[[Tensor], Tensor | None] = lambda each: each,
    *,
    keep: bool = True,
) -> dict[str, Tensor]:
    """The tensors of this rank's layers, whole and on the CPU, by the names that they have in the whole model.

    All ranks of a tensor group call it; those but the first get nothing. `read` gives what is to be gathered for a
    parameter or buffer, None for nothing: itself, its gradient, a state of the optimizer. What has not the shape of the
    parameter is the same on every rank. A replica that does not `keep` them takes part and gets nothing: ZeRO's pieces are
    gathered by all, and a model for each rank of a machine would not fit its memory.
    """
    whole = {}
    for part in parts:
        for name, tensor in part.state_dict(keep_vars=True).items():
            value, cut = read(tensor), cut_of(tensor)
            if value is None:
                continue
            value = value.detach()
            if cut is not None and ranks is not None and value.shape == shape_of(tensor):
                pieces = _pieces(value, cut, ranks)
                value = cut.join(pieces) if ranks.rank == 0 else value
            if keep and (ranks is None or ranks.rank == 0):
                whole[name] = value.cpu().clone()
    return whole


def _pieces(value: Tensor, cut: Cut, ranks: TensorRanks) -> list[Tensor]:
    """Every rank's piece, in their order; they may differ in size by one in each section."""
    pieces = []
    for rank in range(ranks.ranks):
        size = list(value.shape)
        size[cut.axis] = sum(cut.sizes(rank, ranks.ranks))
        piece = value.contiguous() if rank == ranks.rank else value.new_empty(size)
        dist.broadcast(piece, group=ranks.group, group_src=rank)
        pieces.append(piece)
    return pieces

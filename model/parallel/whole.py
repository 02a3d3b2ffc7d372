"""Whole tensors from the ranks' pieces, and pieces from whole tensors: what a checkpoint holds knows no layout."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.parallel.cuts import cut_of
from model.parallel.tensor import TensorRanks


@torch.no_grad()
def load_whole(parts: Sequence[nn.Module], state: Mapping[str, Tensor], ranks: TensorRanks | None) -> None:
    """Give the layers of this rank their pieces of a whole model's state dict.

    Raises `KeyError` for a tensor that is missing, `ValueError` for one of another shape.
    """
    for part in parts:
        for name, target in part.state_dict(keep_vars=True).items():
            piece, cut = state[name], cut_of(target)
            if cut is not None and ranks is not None:
                piece = cut.piece(piece, ranks.rank, ranks.ranks)
            if piece.shape != target.shape:
                raise ValueError(f"{name} is {tuple(piece.shape)}, not {tuple(target.shape)}")
            target.copy_(piece)


@torch.no_grad()
def gather_whole(
    parts: Sequence[nn.Module], ranks: TensorRanks | None, read: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """The tensors of this rank's layers, whole and on the CPU, by the names that they have in the whole model.

    All ranks of a tensor group call it; those but the first get nothing. `read` gives what is to be gathered for a
    parameter or buffer, in its shape: itself, its gradient, a state of the optimizer.
    """
    whole = {}
    for part in parts:
        for name, tensor in part.state_dict(keep_vars=True).items():
            value, cut = read(tensor).detach(), cut_of(tensor)
            if cut is not None and ranks is not None:
                pieces = _pieces(value, ranks)
                value = cut.join(pieces) if ranks.rank == 0 else value
            if ranks is None or ranks.rank == 0:
                whole[name] = value.cpu().clone()
    return whole


def _pieces(value: Tensor, ranks: TensorRanks) -> list[Tensor]:
    """Every rank's piece, in their order. Pieces may differ in size by one, so each says how large it is."""
    sizes: list[torch.Size] = [value.shape] * ranks.ranks
    dist.all_gather_object(sizes, value.shape, ranks.group)
    pieces = []
    for rank, size in enumerate(sizes):
        piece = value.contiguous() if rank == ranks.rank else torch.empty(size, dtype=value.dtype, device=value.device)
        dist.broadcast(piece, group=ranks.group, group_src=rank)
        pieces.append(piece)
    return pieces

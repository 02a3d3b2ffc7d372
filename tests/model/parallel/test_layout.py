"""Layouts that go and layouts that do not; how a parameter is cut."""

import pytest
import torch

from common.errors import UsageError
from model.parallel.cuts import Cut, cut_of, cut_parameter, own_range
from model.parallel.layout import Divisible, ParallelLayout, choose_layout, layouts

SIZES = Divisible(heads=8, kv_heads=4, feed_forward=96, layers=6, batch=32)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "ranks", "data"), [(1, 1, 1, 1), (4, 6, 24, 1), (2, 3, 48, 8), (1, 1, 32, 32)]
)
def test_what_divides_is_taken(tensor: int, pipeline: int, ranks: int, data: int) -> None:
    assert choose_layout(tensor, pipeline, ranks, SIZES, where="x") == ParallelLayout(tensor, pipeline, data)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "ranks", "problem", "nearest"),
    [
        (8, 1, 8, "4 key and value heads are not a multiple of tensor 8", "tensor 4 x pipeline 1 x data 2"),
        (3, 1, 6, "8 heads are not a multiple of tensor 3", "tensor 2 x pipeline 3 x data 1"),
        (1, 8, 8, "6 layers are fewer than pipeline 8", "tensor 2 x pipeline 4 x data 1"),
        (1, 1, 64, "a batch of 32 is not a multiple of data 64", "tensor 1 x pipeline 2 x data 32"),
        (2, 2, 6, "6 ranks are not a multiple of tensor 2 x pipeline 2", "tensor 2 x pipeline 3 x data 1"),
        (1, 1, 7, "a batch of 32 is not a multiple of data 7", "none"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest_that_does(
    tensor: int, pipeline: int, ranks: int, problem: str, nearest: str
) -> None:
    with pytest.raises(UsageError) as refused:
        choose_layout(tensor, pipeline, ranks, SIZES, where="training.parallel")
    assert problem in str(refused.value) and nearest in str(refused.value)


def test_feed_forward_channels_are_divided_too() -> None:
    assert SIZES.why_not(ParallelLayout(4)) is None
    uneven = Divisible(heads=8, kv_heads=8, feed_forward=100, layers=6, batch=32)
    assert uneven.why_not(ParallelLayout(8)) == "100 feed-forward channels are not a multiple of tensor 8"


def test_all_layouts_of_so_many_ranks_are_tried() -> None:
    found = layouts(12)
    assert len(found) == len(set(found)) == 18 and all(layout.ranks == 12 for layout in found)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize(("axis", "sections"), [(0, (7,)), (0, (4, 2, 1)), (1, (6,)), (1, (2, 4))])
def test_pieces_join_to_the_whole(axis: int, sections: tuple[int, ...], ranks: int) -> None:
    whole, cut = torch.randn(7, 6), Cut(axis, sections)
    pieces = [cut_parameter(whole, cut, rank, ranks) for rank in range(ranks)]
    assert torch.equal(cut.join(pieces), whole)
    assert sum(piece.numel() for piece in pieces) == whole.numel()
    assert all(cut_of(piece) == cut for piece in pieces) and cut_of(whole) is None
    assert sum(len(own_range(7, rank, ranks)) for rank in range(ranks)) == 7


def test_a_rank_has_a_piece_of_each_section() -> None:
    """Queries, keys and values of some heads each, not all of the queries."""
    whole = torch.arange(8)
    assert Cut(0, (4, 2, 2)).piece(whole, 1, 2).tolist() == [2, 3, 5, 7]

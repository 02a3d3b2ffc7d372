"""Attention by blocks gives the numbers of the mask that it stands for, and computes only what it must."""

import pytest
import torch

from model.quantization.export_onnx import export_graphs
from model.quantization.inference import with_plain_tables
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.patterns import MASKED_SCORE, LocalAttention, Window, near, window_bias
from serving.package.runtime.providers import load_graph

TEXT = 5


@pytest.mark.parametrize(
    ("grid", "window", "side"), [((16, 16), 2, 4), ((12, 20), 1, 2), ((6, 9), 3, 3), ((8, 8), 0, 1), ((5, 7), 2, 1)]
)
def test_blocks_give_the_numbers_of_the_mask(grid, window, side):
    torch.manual_seed(0)
    cells = grid[0] * grid[1]
    query = torch.randn(2, 3, cells, 8)
    key, value = torch.randn(2, 3, TEXT + cells, 8), torch.randn(2, 3, TEXT + cells, 8)
    masked = torch.softmax(query @ key.transpose(-1, -2) + window_bias(grid, window, TEXT), -1) @ value
    torch.testing.assert_close(LocalAttention(grid, window, side)(query, key, value), masked, atol=1e-5, rtol=1e-5)


def test_near_is_a_square_around_the_cell():
    seen = near(5, 5, 1)[7].view(5, 5)  # the cell of row 1 and column 2
    assert seen.nonzero().tolist() == [[row, column] for row in (0, 1, 2) for column in (1, 2, 3)]


def test_blocks_are_used_where_they_compute_less():
    assert Window((8, 8), 2, TEXT).local is None and Window((8, 8), 2, TEXT).bias is not None
    assert Window((8, 8), None, TEXT).local is None and Window((8, 8), None, TEXT).bias is None
    local = Window((32, 32), 2, TEXT).local
    assert local is not None
    keys = local.bias.shape[-1]
    assert local.bias.shape == (64, 16, 64) and keys * 16 == 32 * 32
    # A cell in a corner sees nine cells, one inside 25: the others of its block's keys are masked.
    counts = (local.bias > MASKED_SCORE).sum(-1).flatten()[local.place]
    assert counts[0] == 9 and counts[33 * 5] == 25


def test_a_grid_that_the_blocks_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="6x9 cannot be cut into blocks of 4x4"):
        LocalAttention((6, 9), 2, 4)


@pytest.fixture
def large() -> Generator:
    torch.manual_seed(1)
    config = GeneratorConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        coarse_grid=(24, 24),
        sketch_window=1,
        fine_window=2,
        plan_tokens=4,
    )
    return Generator(config).eval()


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    seeded = torch.Generator().manual_seed(2)
    return (
        torch.randint(512, (2, 16), generator=seeded),
        torch.randint(240, (2, 576), generator=seeded),
        torch.randint(240, (2, 576, 4), generator=seeded),
    )


def test_training_and_decoding_agree_by_blocks(large):
    assert large.sketch_window.local is not None and large.fine_windows[0].local is not None
    text, coarse, fine = tokens()
    past, read = large.prefill(text)
    values = large.plan.encode(coarse, [fine])
    plan = large.plan.codes(values)
    logits, last = large.train_coarse(text, coarse, values)
    torch.testing.assert_close(large.coarse_logits(past, coarse, plan), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read, last, atol=1e-5, rtol=1e-5)
    details = large.fine_logits(past, coarse, fine, plan)
    torch.testing.assert_close(details, large.train_fine(text, coarse, fine, values), atol=1e-5, rtol=1e-5)
    masked = Generator(large.config).eval()
    masked.load_state_dict(large.state_dict())
    for window in (masked.sketch_window, masked.fine_windows[0]):
        size = 1 if window is masked.sketch_window else 2
        window.local, window.bias = None, window_bias((24, 24), size, 16)
    torch.testing.assert_close(masked.coarse_logits(past, coarse, plan), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked.fine_logits(past, coarse, fine, plan), details, atol=1e-5, rtol=1e-5)


def test_a_far_cell_changes_nothing_and_a_near_one_does(large):
    text, coarse, _ = tokens()
    changed = coarse.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 240
    past, _ = large.prefill(text)
    plan = torch.zeros(2, 4, dtype=torch.long)
    moved = (large.coarse_logits(past, changed, plan) - large.coarse_logits(past, coarse, plan)).abs().amax((0, 2))
    # Two layers of one cell each: what is more than two rows or columns away cannot know.
    reached = (moved > 0).view(24, 24)
    assert reached[:3, :3].all() and not reached[3:].any() and not reached[:, 3:].any()


def test_the_exported_graphs_skip_too(large, tmp_path):
    visual = VisualTokenizer(VisualTokenizerConfig(width=8, depth=1)).eval()
    export_graphs(with_plain_tables(large), visual, tmp_path, names=("coarse", "fine"))
    text, coarse, fine = tokens()
    past, _ = large.prefill(text)
    plan = torch.zeros(2, 4, dtype=torch.long)
    feeds = {"past": past.detach().numpy(), "coarse_ids": coarse.numpy(), "plan_ids": plan.numpy()}
    (logits,) = load_graph(tmp_path / "coarse.onnx", 1).run(["logits"], feeds)
    torch.testing.assert_close(torch.from_numpy(logits), large.coarse_logits(past, coarse, plan), atol=1e-4, rtol=1e-4)
    (logits,) = load_graph(tmp_path / "fine.onnx", 1).run(["logits"], feeds | {"fine_ids": fine.numpy()})
    expected = large.fine_logits(past, coarse, fine, plan)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)

"""FlexAttention behind the gate: the same numbers, and a mask that skips what is closed."""

import pytest
import torch

from model.transformer.gate import GatedInput, gated_attention_masked
from model.transformer.gate_flex import gate_mask, gated_attention_flex

KEY_SIZES = (16, 64, 16, 64)
UNITS_OF_BLOCK = (1, 4, 1, 4)


def some_input(own: int = 80) -> GatedInput:
    random = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(2, 3, tokens, 16, generator=random)

    gates = (torch.rand(2, 3, 2, 4, generator=random) > 0.5).float()
    return GatedInput(draw(64) * 0.25, draw(160), draw(160), draw(own), draw(own), None, gates, KEY_SIZES)


def test_it_gives_what_masking_gives():
    given = some_input()
    torch.testing.assert_close(gated_attention_flex(given), gated_attention_masked(given), atol=1e-5, rtol=1e-5)


def test_the_block_mask_holds_the_open_blocks_and_the_own_tokens_and_nothing_else():
    given = some_input()
    seen = gate_mask(given).to_dense().bool()
    assert seen.shape == (2, 3, 2, 15)
    expected = given.gates.bool().repeat_interleave(torch.tensor(UNITS_OF_BLOCK), -1)
    assert torch.equal(seen[..., :10], expected) and seen[..., 10:].all()


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="one request"):
        gated_attention_flex(some_input()._replace(requests=2))
    with pytest.raises(ValueError, match="cannot be cut"):
        gated_attention_flex(some_input(own=72))

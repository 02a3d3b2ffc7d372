"""The modality gate: skipped blocks are not seen, and not computed."""

import pytest
import torch

from model.transformer.gate import (
    GatedInput,
    ModalityGate,
    block_means,
    gated_attention,
    gated_attention_masked,
    open_blocks,
)

QUERY_SIZES, KEY_SIZES = (4, 8, 8), (4, 16, 4, 16, 8)


def some_input(seed: int = 0) -> GatedInput:
    random = torch.Generator().manual_seed(seed)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(2, 3, tokens, 8, generator=random)

    return GatedInput(
        query=draw(20) * 8**-0.5,
        earlier_keys=draw(48),
        earlier_values=draw(48),
        own_keys=draw(20),
        own_values=draw(20),
        own_bias=torch.full((20, 20), -1e4).triu(1),
        gates=(torch.rand(2, 3, 3, 5, generator=random) > 0.6).float(),
        query_sizes=QUERY_SIZES,
        key_sizes=KEY_SIZES,
    )


@pytest.mark.parametrize("seed", range(4))
def test_gathering_the_open_blocks_gives_what_masking_the_closed_ones_gives(seed):
    given = some_input(seed)
    torch.testing.assert_close(gated_attention(given), gated_attention_masked(given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_closed_is_the_block_alone_and_all_open_is_plain_attention(value):
    given = some_input()._replace(gates=torch.full((2, 3, 3, 5), value))
    seen = slice(0, 48 if value else 0)
    keys = torch.cat([given.earlier_keys[:, :, seen], given.own_keys], 2)
    values = torch.cat([given.earlier_values[:, :, seen], given.own_values], 2)
    bias = torch.cat([torch.zeros(20, keys.shape[2] - 20), given.own_bias], 1)
    expected = torch.softmax(given.query @ keys.transpose(-1, -2) + bias, -1) @ values
    torch.testing.assert_close(gated_attention(given), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gated_attention_masked(given), expected, atol=1e-5, rtol=1e-5)


def test_a_closed_block_changes_nothing():
    given = some_input()
    given.gates[:, :, :, 1] = 0
    before = gated_attention(given)
    given.earlier_keys[:, :, 4:20], given.earlier_values[:, :, 4:20] = 7.0, -7.0
    assert torch.equal(gated_attention(given), before)
    given.gates[:, :, :, 1] = 1
    assert not torch.allclose(gated_attention(given), before)


def test_the_gate_is_hard_forward_and_soft_backward():
    gate = ModalityGate(heads=3, head_dim=8, bias=0.0)
    given = some_input()
    alpha = gate(block_means(given.query, QUERY_SIZES), block_means(given.earlier_keys, KEY_SIZES))
    assert alpha.shape == (2, 3, 3, 5)
    gates = open_blocks(alpha)
    assert set(gates.detach().round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(gates.detach() > 0.5, alpha > 0.5)
    gates.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in gate.parameters())


def test_a_gate_can_ask_for_the_block_that_matches():
    gate = ModalityGate(heads=1, head_dim=4, bias=-2.0)
    keys = torch.eye(4)[None, None]
    assert torch.equal(gate(keys[:, :, 2:3], keys).argmax(-1).flatten(), torch.tensor([2]))
    assert (gate(keys, keys)[0, 0] > 0.5).equal(torch.eye(4, dtype=torch.bool))

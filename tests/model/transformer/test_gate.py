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

KEY_SIZES = (4, 16, 4, 16, 8)
BATCH, HEADS, REQUESTS, TOKENS, OWN, HEAD_DIM = 2, 3, 2, 10, 14, 8
QUERY_BLOCKS = 4
QUERY_SIZES = (5,) * QUERY_BLOCKS


def some_input(seed: int = 0) -> GatedInput:
    random = torch.Generator().manual_seed(seed)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(BATCH, HEADS, tokens, HEAD_DIM, generator=random)

    return GatedInput(
        query=draw(REQUESTS * TOKENS) * HEAD_DIM**-0.5,
        earlier_keys=draw(48),
        earlier_values=draw(48),
        own_keys=draw(REQUESTS * OWN),
        own_values=draw(REQUESTS * OWN),
        own_bias=torch.full((TOKENS, OWN), -1e4).triu(5),
        gates=(torch.rand(BATCH, HEADS, QUERY_BLOCKS, 5, generator=random) > 0.6).float(),
        key_sizes=KEY_SIZES,
        requests=REQUESTS,
    )


def plain(given: GatedInput, seen: slice) -> torch.Tensor:
    """Each request by itself, over the earlier tokens `seen` and its own."""
    mixed = []
    for request in range(REQUESTS):
        own = slice(request * OWN, (request + 1) * OWN)
        query = given.query[:, :, request * TOKENS : (request + 1) * TOKENS]
        keys = torch.cat([given.earlier_keys[:, :, seen], given.own_keys[:, :, own]], 2)
        values = torch.cat([given.earlier_values[:, :, seen], given.own_values[:, :, own]], 2)
        bias = torch.nn.functional.pad(given.own_bias, (keys.shape[2] - OWN, 0))
        mixed.append(torch.softmax(query @ keys.transpose(-1, -2) + bias, -1) @ values)
    return torch.cat(mixed, 2)


@pytest.mark.parametrize("seed", range(4))
def test_gathering_the_open_blocks_gives_what_masking_the_closed_ones_gives(seed):
    given = some_input(seed)
    torch.testing.assert_close(gated_attention(given), gated_attention_masked(given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_closed_is_the_request_alone_and_all_open_is_plain_attention(value):
    given = some_input()
    given = given._replace(gates=torch.full_like(given.gates, value))
    expected = plain(given, slice(0, 48 if value else 0))
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


def test_the_gate_of_one_query_block_is_no_business_of_another():
    given = some_input()
    before = gated_attention(given)
    given.gates[:, :, 2] = 1 - given.gates[:, :, 2]
    changed = (gated_attention(given) - before).abs().amax(-1).view(BATCH, HEADS, QUERY_BLOCKS, -1).amax(-1) > 1e-4
    assert changed[:, :, 2].all() and not changed[:, :, [0, 1, 3]].any()


def test_the_gate_is_hard_forward_and_soft_backward():
    gate = ModalityGate(heads=3, head_dim=8, bias=0.0)
    given = some_input()
    alpha = gate(block_means(given.query, QUERY_SIZES), block_means(given.earlier_keys, KEY_SIZES))
    assert alpha.shape == (BATCH, HEADS, QUERY_BLOCKS, 5)
    gates = open_blocks(alpha)
    assert set(gates.detach().round(decimals=5).flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(gates.detach() > 0.5, alpha > 0.5)
    gates.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in gate.parameters())


def test_alpha_is_the_formula():
    random = torch.Generator().manual_seed(0)
    gate = ModalityGate(heads=2, head_dim=4)
    for parameter in gate.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random)
    queries, keys = torch.randn(3, 2, 5, 4, generator=random), torch.randn(3, 2, 6, 4, generator=random)
    alpha = gate(queries, keys)
    for b, h, q, k in ((0, 0, 0, 0), (2, 1, 4, 5), (1, 0, 3, 2)):
        query, key = queries[b, h, q], keys[b, h, k]
        logit = gate.scale[h] * query @ gate.match[h] @ key + gate.query[h] @ query + gate.key[h] @ key + gate.bias[h]
        torch.testing.assert_close(alpha[b, h, q, k], torch.sigmoid(logit))


def test_a_gate_can_ask_for_the_block_that_matches():
    gate = ModalityGate(heads=1, head_dim=4, bias=-2.0)
    keys = torch.eye(4)[None, None]
    assert torch.equal(gate(keys[:, :, 2:3], keys).argmax(-1).flatten(), torch.tensor([2]))
    assert (gate(keys, keys)[0, 0] > 0.5).equal(torch.eye(4, dtype=torch.bool))


def test_only_what_is_open_is_gathered(monkeypatch):
    """Skipped in the computation, not only in the count: attention sees as many keys as are open, and the own ones."""
    given, seen = some_input(), []
    given = given._replace(gates=torch.zeros_like(given.gates), own_bias=None)
    given.gates[0, 1, 2, [1, 4]] = 1  # 16 and 8 tokens
    plain_attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, *rest, **options):
        seen.append((query.shape[1], key.shape[-2]))
        return plain_attention(query, key, *rest, **options)

    monkeypatch.setattr("model.transformer.gate.F.scaled_dot_product_attention", watched)
    mixed = gated_attention(given)
    assert seen == [(BATCH * HEADS * REQUESTS, OWN), (1, 16 + 8 + OWN)]
    torch.testing.assert_close(mixed, gated_attention_masked(given), atol=1e-5, rtol=1e-5)

"""FlexAttention behind the gate: the same numbers, a mask that skips what is closed, and tiles that CUDA kernels take."""

from itertools import product

import pytest
import torch
from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic
from torch.nn.attention.flex_attention import flex_attention

from model.transformer.gate import GatedInput, gated_attention_masked
from model.transformer.gate_flex import gate_mask, gated_attention_flex, kernel_tiles

KEY_SIZES = (16, 64, 16, 64)
UNITS_OF_BLOCK = (1, 4, 1, 4)
CAPABILITIES = [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]


def some_input(
    own: int = 80, *, tokens: int = 64, blocks: int = 2, key_sizes: tuple[int, ...] = KEY_SIZES, head_dim: int = 16
) -> GatedInput:
    random = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(2, 3, tokens, head_dim, generator=random)

    gates = (torch.rand(2, 3, blocks, len(key_sizes), generator=random) > 0.5).float()
    query, earlier = draw(tokens) * head_dim**-0.5, sum(key_sizes)
    return GatedInput(query, draw(earlier), draw(earlier), draw(own), draw(own), None, gates, key_sizes)


ODD = {"own": 9, "tokens": 20, "blocks": 4, "key_sizes": (5, 7, 24)}
SHAPES = [{}, {"own": 72}, {"own": 10, "blocks": 16, "key_sizes": (4, 16, 6)}, ODD]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_gives_what_masking_gives(shape):
    given = some_input(**shape)
    torch.testing.assert_close(gated_attention_flex(given), gated_attention_masked(given), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{}, ODD])
def test_compiled_for_the_cpu_it_gives_what_masking_gives(shape):
    """The kernel that this compiles walks through the mask's blocks, as those for a GPU do."""
    given = some_input(**shape)
    with torch.inference_mode():
        found = gated_attention_flex(given, torch.compile(flex_attention, dynamic=False))
    torch.testing.assert_close(found, gated_attention_masked(given), atol=1e-5, rtol=1e-5)


def test_the_block_mask_holds_the_open_blocks_and_the_own_tokens_and_nothing_else():
    given = some_input()
    mask = gate_mask(given)
    seen = mask.to_dense().bool()
    assert seen.shape == (2, 3, 2, 15)
    expected = given.gates.bool().repeat_interleave(torch.tensor(UNITS_OF_BLOCK), -1)
    assert torch.equal(seen[..., :10], expected) and seen[..., 10:].all()
    assert not mask.kv_num_blocks.any(), "a block that is seen whole needs no question within"


def test_blocks_below_a_tile_are_merged_and_asked_about_within_where_they_differ():
    given = some_input(
        own=16, tokens=32, blocks=4, key_sizes=(8, 8, 32)
    )  # two query blocks and two of the earlier ones
    given.gates[0, 0] = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
    mask = gate_mask(given)
    assert mask.BLOCK_SIZE == (16, 16) and mask.shape == (2, 3, 32, 64)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    assert mask.full_kv_num_blocks[0, 0].tolist() == [2, 1]
    assert mask.full_kv_indices[0, 0, 0, :2].tolist() == [0, 3] and mask.full_kv_indices[0, 0, 1, 0] == 3
    assert mask.kv_num_blocks[0, 0].tolist() == [0, 3] and mask.kv_indices[0, 0, 1, :3].tolist() == [0, 1, 2]


GATE_SHAPES = [
    (64, 2, (16, 64) * 3, 80),
    (64, 1, (16, 64), 80),
    (64, 8, (16, 64), 80),
    (96, 3, (16, 64), 112),
    (128, 4, (16, 64), 144),
    (256, 2, (16, 256), 272),
    (1024, 32, (16, 1024), 1040),
    (4096, 128, (16, 4096), 4112),
    (4096, 2, (64, 4096), 4160),
    (4096, 4, (24, 4096), 4120),
    (576, 64, (20, 576), 596),
]


def bare_input(tokens: int, blocks: int, key_sizes: tuple[int, ...], own: int, head_dim: int, dtype) -> GatedInput:
    """As much as the mask and the tiles depend on."""
    queries, keys = (torch.empty(1, 1, count, head_dim, dtype=dtype) for count in (tokens, sum(key_sizes)))
    behind, gates = keys[:, :, :1].expand(1, 1, own, head_dim), torch.ones(1, 1, blocks, len(key_sizes))
    return GatedInput(queries, keys, keys, behind, behind, None, gates, key_sizes)


def configs(monkeypatch, capability: tuple[int, int], head_dim: int, dtype: torch.dtype):
    """What torch would try on such a card: for 128 queries and more, and for fewer."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    torchs = CUDAConfigHeuristic()
    return torchs.get_flex_attn_fwd_configs(head_dim, dtype), torchs.get_flex_decode_configs(head_dim, dtype)


def taken(configs, tokens: int, block_size: tuple[int, int], options) -> list[tuple[int, int]]:
    """The tiles that torch 2.13 does not pass over: the conditions of `create_flex_decoding_kernel`, for less than 128
    queries, and of `flex_attention` (torch/_inductor/kernel/flex/), with its names."""
    SPARSE_Q_BLOCK_SIZE, SPARSE_KV_BLOCK_SIZE = block_size
    forward, decoding = configs
    if tokens >= 128:
        tiles = [(options.get("BLOCK_M", each.block_m), options.get("BLOCK_N", each.block_n)) for each in forward]
        return [(m, n) for m, n in tiles if SPARSE_KV_BLOCK_SIZE % n == 0 and SPARSE_Q_BLOCK_SIZE % m == 0]
    block_m = options.get("BLOCK_M", max(1 << (tokens - 1).bit_length(), 16))
    widths = [min(each.block_n, SPARSE_KV_BLOCK_SIZE) for each in decoding]
    if SPARSE_Q_BLOCK_SIZE % block_m:
        return []
    tiles = [(block_m, options.get("BLOCK_N", width)) for width in widths if SPARSE_KV_BLOCK_SIZE % width == 0]
    # What the kernels themselves assert, of both sides.
    return [(m, n) for m, n in tiles if SPARSE_KV_BLOCK_SIZE % n == 0]


@pytest.mark.parametrize("shape", GATE_SHAPES, ids=lambda shape: f"{shape[0]}-{shape[1]}-{shape[2][0]}")
def test_torch_takes_the_tiles_for_its_cuda_kernels(monkeypatch, shape):
    tokens, blocks, key_sizes, own = shape
    for head_dim, dtype in product((16, 32, 64, 80, 128, 256), (torch.float32, torch.bfloat16)):
        given = bare_input(tokens, blocks, key_sizes, own, head_dim, dtype)
        mask = gate_mask(given)
        options = kernel_tiles(given.query, mask)
        tile = (options.get("BLOCK_M", 0), options.get("BLOCK_N", 0))
        assert set(tile) <= {16, 32, 64}
        row_bytes = given.query.element_size() * (1 << (head_dim - 1).bit_length())
        for capability in CAPABILITIES:
            torchs = configs(monkeypatch, capability, head_dim, dtype)
            assert taken(torchs, tokens, mask.BLOCK_SIZE, options) == [tile], (capability, mask.BLOCK_SIZE)
            for config in torchs[0]:  # as many stages as torch's own, each of keys and values
                needed = (tile[0] + 2 * config.num_stages * tile[1]) * row_bytes
                assert needed <= max(64 << 10, (config.block_m + 2 * config.num_stages * config.block_n) * row_bytes)


@pytest.mark.parametrize("tokens", [64, 128, 4096])
def test_torchs_own_tiles_do_not_divide_the_gates_blocks(monkeypatch, tokens):
    """Why they are chosen here; once this fails, torch may do it as well."""
    mask = gate_mask(bare_input(tokens, tokens // 32, (16, 64), 80, 32, torch.bfloat16))
    for capability in CAPABILITIES:
        assert not taken(configs(monkeypatch, capability, 32, torch.bfloat16), tokens, mask.BLOCK_SIZE, {})


def test_the_kernel_gets_the_tiles():
    asked = {}

    def kernel(*inputs, **options):
        asked.update(options)
        return flex_attention(*inputs, **options)

    gated_attention_flex(some_input(), kernel)
    assert asked["kernel_options"] == {"BLOCK_M": 32, "BLOCK_N": 16}
    assert asked["block_mask"].BLOCK_SIZE == (32, 16)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="one request"):
        gated_attention_flex(some_input()._replace(requests=2))
    with pytest.raises(ValueError, match="without a bias"):
        gated_attention_flex(some_input()._replace(own_bias=torch.zeros(64, 80)))

"""Which earlier blocks to skip without looking at them: what a dynamic gate has to beat.

Gates of one story are handled as one bool array [layers, heads, requests, query blocks, scenes, 2]: a scene's caption and
its image.
"""

import numpy as np
import torch
from torch import Tensor

from benchmarks.story_quality import Choose

_MODALITIES = 2


def stacked(gates: list[Tensor], requests: int) -> np.ndarray:
    """A story's gates [1, heads, requests * query_blocks, k] of each layer, as one array."""
    layers = torch.stack([layer[0] > 0.5 for layer in gates]).numpy()
    return layers.reshape(*layers.shape[:2], requests, -1, layers.shape[-1] // _MODALITIES, _MODALITIES)


def unstacked(opened: np.ndarray) -> list[Tensor]:
    """The inverse of `stacked`."""
    layers, heads, requests, blocks, scenes, modalities = opened.shape
    flat = torch.from_numpy(opened.astype(np.float32)).view(layers, 1, heads, requests * blocks, scenes * modalities)
    return list(flat)


def skipped_share(opened: np.ndarray, tokens: tuple[int, int]) -> np.ndarray:
    """Share of the (asking, earlier) token pairs that is skipped, by request: [requests]; `tokens` of a caption and an
    image."""
    share = (opened * np.array(tokens)).sum((-1, -2)) / (opened.shape[-2] * sum(tokens))
    return 1 - share.mean((0, 1, 3))


def same_for_all(opened: np.ndarray, requests: int) -> Choose:
    """One mask [layers, heads, 1, query blocks, scenes, 2] for every request of every story."""
    gates = unstacked(np.repeat(opened, requests, 2))
    return lambda story: gates


def latest_by_head(own: list[np.ndarray]) -> np.ndarray:
    """Each head's query block looks at as many of the latest captions and images as the gate opened for it on average,
    rounded up: never less than the gate."""
    counts = np.mean([story.sum(4).mean(2) for story in own], 0)  # [layers, heads, query blocks, 2]
    age = np.arange(own[0].shape[4])[::-1]
    return (age[:, None] < np.ceil(counts)[..., None, :])[:, :, None]


def latest_in_busiest_head(own: list[np.ndarray], tokens: tuple[int, int]) -> np.ndarray:
    """The head that the gate opens most looks at as many of the latest scenes as the whole budget pays for, rounded up; the
    others at nothing, unless the budget pays for more than all scenes: then the next one gets the rest.

    `tokens` of a caption and an image: what is paid for is tokens. Never less than the gate.
    """
    counts = np.mean([(story * np.array(tokens)).sum((3, 4, 5)).mean(2) for story in own], 0)  # [layers, heads]
    layers, heads, _, blocks, scenes, modalities = own[0].shape
    left = int(np.ceil(counts.sum() / (blocks * sum(tokens))))
    opened = np.zeros((layers, heads, 1, blocks, scenes, modalities), dtype=bool)
    for place in np.argsort(-counts, axis=None, kind="stable"):
        layer, head = np.unravel_index(place, counts.shape)
        opened[layer, head, :, :, max(0, scenes - left) :] = True
        left = max(0, left - scenes)
    return opened


def wherever_the_gate_ever_looks(own: list[np.ndarray]) -> np.ndarray:
    """Every caption or image for the heads and query blocks that the gate opened for any: what could be skipped by cutting
    heads off, without looking at what is in a scene."""
    ever = np.any([story.any((2, 4)) for story in own], 0)  # [layers, heads, query blocks, 2]
    return np.repeat(ever[:, :, None, :, None], own[0].shape[4], 4)


def latest_scenes(shape: tuple[int, ...], scenes: int) -> np.ndarray:
    """All heads look at the latest `scenes`; `shape` as that of a story's array."""
    opened = np.zeros((*shape[:2], 1, *shape[3:]), dtype=bool)
    opened[..., shape[4] - scenes :, :] = True
    return opened


def random_choice(own: list[np.ndarray], seed: int) -> Choose:
    """The gate's own openings moved to other scenes: every head opens as much as it did, but which scenes is chance."""
    random = np.random.Generator(np.random.PCG64([seed, 6]))
    moved = []
    for story in own:
        copy = story.copy()
        for request in range(story.shape[2]):
            copy[:, :, request] = story[:, :, request][..., random.permutation(story.shape[4]), :]
        moved.append(unstacked(copy))
    return lambda story: moved[story]


def random_scenes(shape: tuple[int, ...], stories: int, scenes: int, seed: int) -> Choose:
    """All heads look at the same `scenes` drawn at random for each request."""
    random = np.random.Generator(np.random.PCG64([seed, 7]))
    drawn = []
    for _ in range(stories):
        opened = np.zeros(shape, dtype=bool)
        for request in range(shape[2]):
            opened[:, :, request][..., random.permutation(shape[4])[:scenes], :] = True
        drawn.append(unstacked(opened))
    return lambda story: drawn[story]

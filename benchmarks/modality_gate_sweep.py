"""The curves of the modality gate's picture: accuracy and time as more is skipped, and time as the context grows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import checkpoints
from benchmarks import story_policies as policies
from benchmarks.modality_gate_plot import Shown
from benchmarks.modality_gate_timing import Request, fastest, interleave, median
from benchmarks.stories import SceneTokens, heldout_stories
from benchmarks.story_quality import Choose, Stories
from model.transformer.story import StoryGenerator

_THRESHOLDS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_KEPT_SCENES = (1, 2, 4, 8, 13, 20, 26)
_LENGTHS = (1, 3, 6, 13, 26, 39, 52)
_ROUNDS = 20

AccuracyOf = Callable[[StoryGenerator, Choose, Stories], tuple[float, float]]
"""(skipped share, accuracy) of a model under gates."""


def sweep(stories: Stories, models: Mapping[str, StoryGenerator], accuracy_of: AccuracyOf, count: int) -> Shown:
    """All curves, over the first `count` stories."""
    some = Stories(_first(stories.tokens, count * stories.scenes), stories.scenes)
    shown = Shown()
    _accuracies(shown, some, models, accuracy_of)
    _times_by_share(shown, some, models["ungated"])
    _times_by_length(shown, models)
    return shown


def _accuracies(shown: Shown, stories: Stories, models: Mapping[str, StoryGenerator], accuracy_of: AccuracyOf) -> None:
    gated, twin = models["gated"], models["ungated"]
    shown.accuracy["the gate, at several thresholds"] = [
        accuracy_of(gated, _at_threshold(gated, stories, threshold), stories) for threshold in _THRESHOLDS
    ]
    layers = twin.config.num_hidden_layers - 1
    shape = (layers, twin.config.num_attention_heads, stories.scenes, twin.config.query_blocks, stories.scenes, 2)
    shown.accuracy["the latest scenes (twin)"] = [
        accuracy_of(twin, policies.same_for_all(policies.latest_scenes(shape, kept), stories.scenes), stories)
        for kept in _KEPT_SCENES
    ]
    shown.accuracy["random scenes (twin)"] = [
        accuracy_of(twin, policies.random_scenes(shape, len(stories), kept, seed=0), stories) for kept in _KEPT_SCENES
    ]


def _at_threshold(model: StoryGenerator, stories: Stories, threshold: float) -> Choose:
    """The gate with another threshold of alpha than one half."""
    logit = math.log(threshold / (1 - threshold))

    def choose(story: int) -> list[Tensor]:
        context = stories.context(model, story)
        requests = stories.tokens.requests[stories.rows(story)][None]
        return model.gates_above(context, requests, logit)

    return choose


def _times_by_share(shown: Shown, stories: Stories, twin: StoryGenerator) -> None:
    """The twin's attention with 1 to 26 scenes open, gathered, and dense."""
    config = twin.config
    shape = (config.num_hidden_layers - 1, config.num_attention_heads, 1, config.query_blocks, stories.scenes, 2)
    with torch.inference_mode():
        request = Request.of(twin, stories.context(twin, 0), stories.tokens.requests[:1][None])
    work = {str(kept): request.masked(policies.unstacked(policies.latest_scenes(shape, kept))) for kept in _KEPT_SCENES}
    dense = request.dense()
    times = interleave(_ROUNDS, lambda _: work | dense)
    shown.time_by_share["gathered, some scenes open"] = [
        (1 - kept / stories.scenes, median(times[str(kept)])) for kept in _KEPT_SCENES
    ]
    level = median(times[fastest({name: times[name] for name in dense})])
    shown.time_by_share["the fastest dense attention"] = [(0.0, level), (1.0, level)]


def _times_by_length(shown: Shown, models: Mapping[str, StoryGenerator]) -> None:
    """Both models' attention in one long story and its beginnings."""
    length = models["gated"].config.text_length
    tokens = heldout_stories(checkpoints.load_tokenizers(), length, 1, max(_LENGTHS))
    curves: dict[str, list[tuple[float, float]]] = {"the fastest dense attention": [], "through the gate": []}
    for scenes in _LENGTHS:
        story = Stories(_first(tokens, scenes), scenes)
        text = tokens.requests[:1][None]
        with torch.inference_mode():
            dense = Request.of(models["ungated"], story.context(models["ungated"], 0), text).dense()
            gated = Request.of(models["gated"], story.context(models["gated"], 0), text).gated()
        times = interleave(_ROUNDS, lambda _, work=dense | {"gate": gated}: work)
        across = sum(models["gated"].key_sizes(scenes))
        curves["the fastest dense attention"].append((across, median(times[fastest({k: times[k] for k in dense})])))
        curves["through the gate"].append((across, median(times["gate"])))
    shown.time_by_length.update(curves)


def _first(tokens: SceneTokens, count: int) -> SceneTokens:
    return replace(tokens, **{name: value[:count] for name, value in vars(tokens).items()})

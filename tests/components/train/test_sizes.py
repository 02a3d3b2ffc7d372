"""How many images are computed at once where nobody says."""

import pytest

from components.train.settings import TrainingSettings
from components.train.sizes import least_micro_batch, micro_batch_size, micro_batch_sizes
from model.transformer.config import GeneratorConfig

SHAPE = GeneratorConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=2)


def settings(**changes) -> TrainingSettings:
    return TrainingSettings.model_validate({"optimizer": "adamw", "global_batch_size": 96} | changes)


def test_without_a_pipeline_a_rank_computes_all_of_its_share_at_once():
    assert micro_batch_size(settings(), SHAPE, "parallel", 2) == 48
    assert micro_batch_sizes(settings(), SHAPE, "parallel", 48) == [2, 3, 4, 6, 8, 12, 16, 24, 48]


@pytest.mark.parametrize(("stages", "size"), [(2, 6), (4, 3), (6, 2), (12, 2)])
def test_a_pipeline_gets_four_micro_batches_for_each_stage_or_as_many_as_there_are(stages, size):
    staged = settings(parallel={"pipeline": stages})
    assert micro_batch_size(staged, SHAPE, "parallel", 2) == size
    sizes = micro_batch_sizes(staged, SHAPE, "parallel", 48)
    assert all(48 // each >= 4 * stages for each in sizes) or sizes == [2]


def test_what_is_asked_for_is_taken():
    asked = settings(parallel={"pipeline": 2, "micro_batch_size": 24})
    assert micro_batch_size(asked, SHAPE, "parallel", 2) == 24


def test_plans_are_learned_from_two_images_or_more():
    assert least_micro_batch(settings(), SHAPE, "parallel") == 2
    assert micro_batch_sizes(settings(), SHAPE, "parallel", 1) == []
    assert least_micro_batch(settings(), SHAPE, "next_token") == 1
    assert least_micro_batch(settings(plan_frozen_from=0), SHAPE, "parallel") == 1
    assert least_micro_batch(settings(), SHAPE.model_copy(update={"plan_tokens": 0}), "parallel") == 1

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from components.ingest.evaluation.choose import choose_by_groups, one_row_per_content
from components.ingest.evaluation.survey import Survey
from components.ingest.settings import EvaluationSettings
from components.near_duplicates import THUMBNAIL_VALUES
from components.sample_groups import group_samples
from tests.components.data import picture


def survey(rows: list[tuple[str, str, Image.Image]]) -> Survey:
    filled = Survey(compare_pictures=True)
    for number, (content, caption, pixels) in enumerate(rows):
        filled.add({"id": f"id{number}", "content_sha256": content, "text": caption}, pixels)
    return filled


def distinct(count: int, caption: str | None = None) -> list[tuple[str, str, Image.Image]]:
    return [(f"content{n}", caption or f"caption {n}", picture(n)) for n in range(count)]


def test_groups_join_through_any_chain():
    thumbnails = np.zeros((5, THUMBNAIL_VALUES), dtype=np.uint8)
    thumbnails[:] = np.array([0, 100, 200, 202, 250])[:, None]
    groups = group_samples(["a", "a", "b", "c", "d"], ["x", "y", "y", "z", "w"], thumbnails, 5.0)
    assert groups == [[0, 1, 2, 3], [4]]
    assert group_samples(["a", "a", "b", "c", "d"], None, thumbnails, 5.0) == [[0, 1], [2, 3], [4]]


def test_thousands_of_equal_pictures_are_one_group_quickly():
    thumbnails = np.zeros((6000, THUMBNAIL_VALUES), dtype=np.uint8)
    assert len(group_samples([str(n) for n in range(6000)], None, thumbnails, 5.0)) == 1


def test_whole_groups_are_chosen_up_to_the_fraction():
    rows = distinct(200)
    rows += [(f"copy{n}", f"caption {n}", picture(1000 + n)) for n in range(0, 200, 2)]
    chosen = choose_by_groups(survey(rows), EvaluationSettings(fraction=0.1, minimum_rows=1))
    assert 30 <= len(chosen) <= 32
    captions = {rows[row][1] for row in chosen}
    assert all((row in chosen) == (caption in captions) for row, (_, caption, _) in enumerate(rows))


def test_one_large_group_does_not_fill_the_set():
    """Wherever the hash puts it: fifty frames of one scene say little more than one."""
    for start in range(5):
        rows = [(f"frame{start}-{n}", "a film", picture(n)) for n in range(60)] + distinct(340)
        chosen = choose_by_groups(survey(rows), EvaluationSettings(fraction=0.1, minimum_rows=1))
        assert len(chosen) == 40 and len({rows[row][1] for row in chosen}) == 40
    large = [(f"{n}", f"film {n % 8}", picture(n)) for n in range(160)]
    chosen = choose_by_groups(survey(large), EvaluationSettings(fraction=0.1, minimum_rows=1))
    assert len(chosen) == 20  # where all are large, as before


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    rows = distinct(120)
    settings = EvaluationSettings(fraction=0.1, minimum_rows=1)
    forward = {rows[row][0] for row in choose_by_groups(survey(rows), settings)}
    backward = {rows[::-1][row][0] for row in choose_by_groups(survey(rows[::-1]), settings)}
    assert forward == backward


def test_small_data_gives_at_most_a_fifth_and_two_samples_give_one():
    assert len(choose_by_groups(survey(distinct(20)), EvaluationSettings())) == 4
    assert len(choose_by_groups(survey(distinct(2)), EvaluationSettings())) == 1


def test_images_too_small_to_train_on_are_not_held_out():
    rows = [(content, caption, picture(n, 8 if n % 2 else 32)) for n, (content, caption, _) in enumerate(distinct(40))]
    assert all(row % 2 == 0 for row in choose_by_groups(survey(rows), EvaluationSettings()))


def test_data_of_one_group_cannot_be_split():
    with pytest.raises(DataError, match="hold_out_captions=false"):
        choose_by_groups(survey(distinct(30, caption="a cat")), EvaluationSettings())
    settings = EvaluationSettings(hold_out_captions=False)
    assert len(choose_by_groups(survey(distinct(30, caption="a cat")), settings)) == 6


def test_of_exact_copies_one_is_kept():
    rows = [("same", "zebra", picture(1)), ("same", "ant", picture(1)), ("other", "bee", picture(2))]
    assert one_row_per_content([0, 1, 2], survey(rows)) == [1, 2]

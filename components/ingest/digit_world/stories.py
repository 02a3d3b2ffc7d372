"""Stories: documents of several scenes, each of which can be asked for again.

No two scenes of a story begin with the same glyph, so "a red seven again" means exactly one of them, and what else is
in it, and where, stands nowhere but there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from components.ingest.digit_world.scenes import Glyph, Scene, sample_specs

MOST_SCENES = 60
"""Scenes of the longest story: one for each glyph that a scene can begin with."""
_DRAWN_AT_ONCE = 512


@dataclass(frozen=True)
class Story:
    """The scenes of one document, in their order."""

    document_id: str
    scenes: tuple[Scene, ...]

    def request(self, position: int) -> str:
        """What to say for the scene at `position`, and for no other one of this story."""
        return request(self.scenes[position])


def first_glyph(scene: Scene) -> Glyph:
    """The glyph that the caption names first."""
    return next(iter(scene.slots.values()))


def request(scene: Scene) -> str:
    """A scene asked for by its first glyph alone."""
    return f"{first_glyph(scene).words} again"


def story_specs(
    count: int, scenes: int, seed: int, *, allowed: Callable[[str], bool] | None = None, name: str = "story"
) -> list[Story]:
    """Draw `count` stories of `scenes` scenes each among the `allowed` captions; scenes as `sample_specs` draws them.

    A scene whose first glyph the story already has is passed over. The same seed gives the same stories. Raises
    `ValueError` for more scenes than there are first glyphs.
    """
    if scenes > MOST_SCENES:
        raise ValueError(f"a story has at most {MOST_SCENES} scenes that begin differently, not {scenes}")
    seeds = np.random.Generator(np.random.PCG64([seed, 4]))
    pool: list[Scene] = []
    stories = []
    for number in range(count):
        chosen: dict[Glyph, Scene] = {}
        while len(chosen) < scenes:
            if not pool:
                pool = sample_specs(_DRAWN_AT_ONCE, int(seeds.integers(2**62)), allowed=allowed)
            scene = pool.pop()
            chosen.setdefault(first_glyph(scene), scene)
        stories.append(Story(f"{name}-{number:06d}", tuple(chosen.values())))
    return stories

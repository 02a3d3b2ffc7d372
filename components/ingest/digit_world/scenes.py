"""Scenes: what stands where, what the caption says, and what the labels hold."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

SLOTS = ("left", "right", "top", "bottom")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "white")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMPTY = -1
_TWO_DIGIT_SHARE = 0.7


@dataclass(frozen=True)
class Glyph:
    """One coloured digit."""

    digit: int
    colour: str

    @property
    def words(self) -> str:
        return f"a {self.colour} {NUMBERS[self.digit]}"


@dataclass(frozen=True)
class Scene:
    """One or two glyphs: left and right, or top and bottom, or one alone in any of the four slots."""

    left: Glyph | None = None
    right: Glyph | None = None
    top: Glyph | None = None
    bottom: Glyph | None = None

    @property
    def slots(self) -> dict[str, Glyph]:
        """The occupied slots, in the order of `SLOTS`."""
        return {slot: glyph for slot in SLOTS if (glyph := getattr(self, slot)) is not None}

    @property
    def caption(self) -> str:
        occupied = self.slots
        if len(occupied) == 1:
            [(slot, glyph)] = occupied.items()
            return f"{glyph.words} at the {slot}"
        first, second = occupied.values()
        relation = "left of" if "left" in occupied else "above"
        return f"{first.words} {relation} {second.words}"

    @property
    def labels(self) -> dict[str, Any]:
        """`{"slots": {"left": {"digit": 7, "colour": "red"}, …}}` with the occupied slots only."""
        return {"slots": {slot: {"digit": g.digit, "colour": g.colour} for slot, g in self.slots.items()}}


def labels_to_slots(labels: str | Mapping[str, Any]) -> dict[str, Glyph]:
    """The occupied slots of a Sample's `labels` (JSON text or parsed)."""
    parsed = json.loads(labels) if isinstance(labels, str) else labels
    return {slot: Glyph(int(glyph["digit"]), str(glyph["colour"])) for slot, glyph in parsed["slots"].items()}


def label_arrays(labels: Sequence[str | Mapping[str, Any]]) -> np.ndarray:
    """int64 [n, 4, 2]: digit and colour index of each slot (in the orders of `SLOTS` and `COLOURS`), -1 where empty."""
    arrays = np.full((len(labels), len(SLOTS), 2), EMPTY, dtype=np.int64)
    for row, label in enumerate(labels):
        for slot, glyph in labels_to_slots(label).items():
            arrays[row, SLOTS.index(slot)] = glyph.digit, COLOURS.index(glyph.colour)
    return arrays


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene that there is, one for each caption, always in the same order."""
    return tuple(_every_scene())


def _every_scene() -> Iterator[Scene]:
    glyphs = [Glyph(digit, colour) for digit, colour in product(range(10), COLOURS)]
    for first, second in product(glyphs, glyphs):
        yield Scene(left=first, right=second)
        yield Scene(top=first, bottom=second)
    for slot, glyph in product(SLOTS, glyphs):
        yield Scene(**{slot: glyph})


@cache
def all_captions() -> tuple[str, ...]:
    """All 7,440 captions: 2 relations of 60 x 60 glyphs, and 60 glyphs alone in 4 places."""
    return tuple(scene.caption for scene in all_scenes())


def sample_specs(count: int, seed: int, *, allowed: Callable[[str], bool] | None = None) -> list[Scene]:
    """Draw `count` scenes with replacement, 70% of them with two digits, uniformly among the `allowed` captions."""
    permitted = [scene for scene in all_scenes() if allowed is None or allowed(scene.caption)]
    pairs = [scene for scene in permitted if len(scene.slots) == 2]
    singles = [scene for scene in permitted if len(scene.slots) == 1]
    random = np.random.Generator(np.random.PCG64([seed, 1]))
    two = random.random(count) < _TWO_DIGIT_SHARE
    picks = random.random(count)
    return [
        pool[int(pick * len(pool))]
        for pool, pick in ((pairs if t else singles, p) for t, p in zip(two, picks, strict=True))
    ]

"""A user's own measure of quality: `module:function`, given every arm's images and their captions."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from common.errors import SettingsError

Metric = Callable[[np.ndarray, Sequence[str]], Sequence[float]]
"""Images uint8 [n, height, width, 3] and their n captions to n scores, higher is better."""


class MetricError(Exception):
    """A metric of the user's could not measure: what was said, and by which one."""


def load_metrics(named: Mapping[str, str]) -> dict[str, Metric]:
    """The functions behind `module:function`, by name. Raises `SettingsError` where one cannot be imported."""
    return {name: _load(name, target) for name, target in named.items()}


def score(name: str, metric: Metric, images: np.ndarray, captions: Sequence[str]) -> list[float | None]:
    """One score for each image; NaN and infinity become `None`. Raises `MetricError`."""
    try:
        scores = [float(value) for value in metric(images, captions)]
    except Exception as error:
        raise MetricError(f"the metric '{name}' failed: {type(error).__name__}: {error}") from error
    if len(scores) != len(images):
        raise MetricError(f"the metric '{name}' gave {len(scores)} scores for {len(images)} images")
    return [value if math.isfinite(value) else None for value in scores]


def _load(name: str, target: str) -> Metric:
    module, _, function = target.partition(":")
    key = f"benchmark.metrics.{name}"
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "name a function as module:function, of a module that the steps can import (PYTHONPATH)"
        raise SettingsError(f"'{target}' cannot be imported: {error}", where=key, fix=fix) from None
    if not callable(found):
        raise SettingsError(f"'{target}' is not a function", where=key)
    return cast(Metric, found)

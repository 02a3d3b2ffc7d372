"""When a simulated A/B test stops its arm: by the tests of the release tool, and by a z test that is looked at as often."""

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import norm

from benchmarks.experiment_traffic import Traffic
from serving.release.experiments.evaluation import NEW, RETURNING, estimate
from serving.release.experiments.policy import Policy

LOOKS = 100
POLICY = Policy(vote_margin=0.05)


def stop_path(traffic: Traffic, metrics: tuple[str, ...], margins: Mapping[str, float]) -> np.ndarray:
    """[units] whether any metric had proven the arm worse by then, at the policy's alpha for all of them together.

    The scopes of users are those that occur: returning users are judged as well where there are any.
    """
    units = traffic.units
    scopes = [NEW, RETURNING] if units.returning.any() else [NEW]
    bound = -math.log(POLICY.alpha / (len(metrics) * len(scopes)))
    stopped = np.zeros(len(units), dtype=bool)
    for metric in metrics:
        margin = math.log(margins[metric]) if metric == "latency_ratio" else margins[metric]
        for scope in scopes:
            evidence = estimate(metric, scope, units, traffic.values[metric]).log_evidence_worse(margin)
            chosen = np.flatnonzero(units.returning if scope == RETURNING else ~units.returning)
            stopped[chosen[1:][evidence >= bound]] = True
    return np.maximum.accumulate(stopped)


def z_test_stops(traffic: Traffic, metrics: tuple[str, ...]) -> np.ndarray:
    """[looks] whether a one-sided z test of two means, the same alpha split among the metrics, stops at each look."""
    treated, bound = traffic.units.is_challenger, norm.isf(POLICY.alpha / len(metrics))
    looks, stops = looks_after(len(treated)) - 1, np.zeros(LOOKS, dtype=bool)
    for metric in metrics:
        values = traffic.values[metric]
        if metric == "latency_ratio" and traffic.requests is not None:
            values, treated_rows = traffic.requests.ravel(), np.repeat(treated, traffic.requests.shape[1])
            rows = (looks + 1) * traffic.requests.shape[1] - 1
        else:
            treated_rows, rows = treated, looks
        stops |= z_path(values, treated_rows)[rows] >= bound
    return stops


def z_path(values: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """[n] the z statistic of the difference of the arms' means, after each value."""
    moments = []
    for arm in (treated, ~treated):
        count = np.maximum(np.cumsum(arm), 1)
        mean = np.cumsum(values * arm) / count
        moments.append((mean, (np.cumsum(values**2 * arm) / count - mean**2) / count))
    (mean, variance), (control_mean, control_variance) = moments
    spread = np.sqrt(np.maximum(variance + control_variance, 0))
    return np.divide(mean - control_mean, spread, out=np.zeros_like(mean), where=spread > 0)


def looks_after(users: int) -> np.ndarray:
    """After how many users somebody looks."""
    return np.linspace(users / LOOKS, users, LOOKS).astype(int)

"""The law L(c) = (a / c)^b + g of the loss over the context c (Xiong et al. 2023, arXiv 2309.16039), fitted to measured
losses, with the uncertainty of its parameters; or the reason why the losses do not determine it.

a is in tokens (and depends on the unit of the loss), b is a number, g is the loss that no context would better.
"""
import math
from typing import NamedTuple

import plotting

FEWEST = 4  # points, for three parameters and one to spare
WORST = 3.0  # chi squared for each degree of freedom: beyond it the losses are not of this form


class Law(NamedTuple):
    a: float
    b: float
    g: float
    a_error: float  # one standard deviation
    b_error: float
    g_error: float

    def at(self, context):
        return (self.a / context) ** self.b + self.g


def falls(contexts, losses, errors):
    """Does the loss fall with log c, by more than twice the uncertainty of a straight line's slope?"""
    weights = [1 / error**2 for error in errors]
    x = [math.log(context) for context in contexts]
    total = sum(weights)
    middle = sum(w * value for w, value in zip(weights, x)) / total
    spread = sum(w * (value - middle) ** 2 for w, value in zip(weights, x))
    slope = sum(w * (value - middle) * loss for w, value, loss in zip(weights, x, losses)) / spread
    return slope < -2 / math.sqrt(spread)


def fit(contexts, losses, errors):
    """(law, ""), or (None, why not). errors: one standard deviation of each loss, None where it is not known."""
    if len(contexts) < FEWEST:
        return None, f"{len(contexts)} contexts, {FEWEST} are needed"
    if any(error is None or not error > 0 for error in errors):
        return None, "no spread: one seed"
    if not falls(contexts, losses, errors):
        return None, "does not fall with context"
    plotting.needs("scipy")
    from scipy.optimize import curve_fit

    def law(context, log_a, b, g):
        return [math.exp(min(b * (log_a - math.log(c)), 300.0)) + g for c in context]

    lowest, highest = min(losses), max(losses)
    start = [math.log(contexts[0]) + 2 * math.log(max(highest - lowest, 1e-6)), 0.5, lowest]
    try:
        (log_a, b, g), covariance = curve_fit(law, contexts, losses, p0=start, sigma=errors, absolute_sigma=True,
                                              maxfev=20000)
    except (RuntimeError, OverflowError, ValueError):
        return None, "no such curve found"
    errors_of = [math.sqrt(variance) if 0 <= variance < math.inf else math.inf for variance in covariance.diagonal()]
    rest = sum(((loss - value) / error) ** 2 for loss, value, error in zip(losses, law(contexts, log_a, b, g), errors))
    if rest > WORST * max(len(contexts) - 3, 1):
        return None, "not of this form"
    if not b > 0 or errors_of[1] > b / 2 or errors_of[0] > 3:
        return None, "not determined"
    a = math.exp(log_a)
    return Law(a, b, g, a * errors_of[0], errors_of[1], errors_of[2]), ""

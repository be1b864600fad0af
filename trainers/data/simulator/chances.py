"""The true probabilities of what a user does at one exposure: pure functions, and the only place that knows them."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_ndtr, ndtr

from livetrain.trainers.data.simulator.settings import EFFECTIVE_S

# (intercept, weights) of the logits; see the package's docstring for what each input is.
CLICK = {"intercept": -2.23, "interest": 1.5, "quality": 0.4, "burst": 0.3, "favourite": 1.0, "friend": 1.0}
STAY = {"intercept": -1.75, "interest": 0.6, "quality": 0.25, "burst": 0.3, "favourite": 0.8, "friend": 0.5}
LIKE = {"intercept": -3.15, "value": 0.8, "charm": 0.4, "burst": 0.8, "heat": 0.3, "excited": 0.8, "favourite": 0.5}
COMMENT = {"intercept": -3.22, "value": 0.6, "charm": 0.3, "burst": 1.0, "heat": 0.4, "excited": 0.9, "favourite": 0.7}
FOLLOW = {"intercept": -5.8, "interest": 0.6, "charm": 0.5, "burst": 0.4, "excited": 0.5}
GIFT = {"intercept": -4.95, "value": 0.9, "charm": 0.4, "burst": 1.2, "heat": 0.5, "excited": 0.9, "favourite": 1.2}
VIDEO_COMPLETE = {"intercept": -1.0, "interest": 0.9}
VIDEO_LIKE = {"intercept": -3.6, "value": 0.9, "excited": 0.6}
VIDEO_FOLLOW = {"intercept": -5.5, "value": 0.5}

# Whoever has clicked likes the topic, so with a conflict he would hardly give, and without one give much. These make
# the rates of actions independent of the dial: with k = 1 - 2 conflict, logits are lowered by a k + b k^2.
BALANCE = {"like": (2.39, 0.40), "comment": (1.81, 0.27), "gift": (2.81, 0.55), "video_like": (0.72, 0.30)}

# Watch time given a click is a mixture of leaving at once and staying, each lognormal (median in s, sigma). Together
# they fit the measured quartiles of shop rooms: 1.8, 5.4 and 34 s, 205 s at 90 %, 19 % over a minute, mean 122 s.
LEAVE, REMAIN = (2.4, 0.9), (55.0, 1.85)


@dataclass(frozen=True)
class Chances:
    """(n,) float64 each. Probabilities of a row's labels, not conditional on the labels before them."""

    click: np.ndarray
    stay: np.ndarray  # given a click, the chance of the mixture's long part
    effective_view: np.ndarray
    like: np.ndarray
    comment: np.ndarray
    follow: np.ndarray
    gift: np.ndarray
    watch_time: np.ndarray  # expected seconds


def logit(weights: dict[str, float], offset: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    """Return intercept + offset + sum of weight * input; every weight needs its input."""
    total = weights["intercept"] + offset.astype(np.float64)
    for name, weight in weights.items():
        if name != "intercept":
            total += weight * inputs[name]
    return total


def balance(task: str, conflict: float) -> float:
    """Return what the conflict dial takes from a task's logit."""
    k, (a, b) = 1 - 2 * conflict, BALANCE[task]
    return a * k + b * k**2


def live(
    inputs: dict[str, np.ndarray],
    users: dict[str, np.ndarray],
    followed: np.ndarray,
    left_s: np.ndarray,
    conflict: float,
) -> Chances:
    """Return the chances of live exposures.

    Args:
        inputs: (n,) each: interest, value, quality, charm, burst, heat, excited, favourite, friend.
        users: (n,) each: bias, patience, warmth, purse.
        followed: (n,) whether the user follows the streamer already.
        left_s: (n,) seconds until the room or the log ends, which cut a view short.
        conflict: the dial of `Settings`.
    """
    click = expit(logit(CLICK, users["bias"], **inputs))
    stay = expit(logit(STAY, users["patience"], **inputs))
    effective = click * np.where(left_s < EFFECTIVE_S, 0.0, longer(EFFECTIVE_S, stay))
    follow = np.where(followed, 0.0, expit(logit(FOLLOW, users["warmth"], **inputs)))
    return Chances(
        click=click,
        stay=stay,
        effective_view=effective,
        like=effective * expit(logit(LIKE, users["warmth"] - balance("like", conflict), **inputs)),
        comment=effective * expit(logit(COMMENT, users["warmth"] - balance("comment", conflict), **inputs)),
        follow=effective * follow,
        gift=effective * expit(logit(GIFT, users["purse"] - balance("gift", conflict), **inputs)),
        watch_time=click * expected_watch(stay, left_s),
    )


def longer(seconds: float | np.ndarray, stay: np.ndarray) -> np.ndarray:
    """Return the chance, given a click, that a view without an end of the room lasts longer."""
    return sum(
        part * ndtr((np.log(median) - np.log(seconds)) / sigma)
        for part, (median, sigma) in ((1 - stay, LEAVE), (stay, REMAIN))
    )


def expected_watch(stay: np.ndarray, left_s: np.ndarray) -> np.ndarray:
    """Return E[min(watch time, left_s)] given a click, in seconds.

    For a lognormal W with log-mean m and deviation s, E[min(W, c)] = exp(m + s^2/2) P(Z < z - s) + c P(Z > z) with
    z = (log c - m) / s and Z standard normal.
    """
    total = np.zeros(len(stay))
    for part, (median, sigma) in ((1 - stay, LEAVE), (stay, REMAIN)):
        z = (np.log(left_s) - np.log(median)) / sigma
        total += part * (np.exp(np.log(median) + sigma**2 / 2 + log_ndtr(z - sigma)) + left_s * ndtr(-z))
    return total


def watch(random: np.random.Generator, stay: np.ndarray, left_s: np.ndarray) -> np.ndarray:
    """Draw the watch time of clicks in seconds; (n,) float64."""
    stays = random.random(len(stay)) < stay
    log_time = np.where(stays, float(np.log(REMAIN[0])), float(np.log(LEAVE[0])))
    log_time += np.where(stays, REMAIN[1], LEAVE[1]) * random.standard_normal(len(stay))
    return np.minimum(np.exp(log_time), left_s)

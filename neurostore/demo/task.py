"""The task of the demo: tell spike patterns apart, and a readout that learns to.

Four patterns of input spikes: two random ones and the same two played backwards. A pattern and
its reversal have the same spikes on every channel, so counting cannot tell them apart; the liquid
has to remember their order. Nothing here knows the liquid or the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["CLASSES", "Answer", "Readout", "build_readout", "draw_patterns", "present"]

Array = npt.NDArray[Any]

CLASSES = ("A", "B", "A reversed", "B reversed")


def draw_patterns(
    rng: np.random.Generator, channels: int, steps: int, rate: float, step: float
) -> Array:
    """Poisson spikes of the patterns, bool, shape (class, step, channel).

    Parameters
    ----------
    rng : numpy.random.Generator
    channels, steps : int
        Size of a pattern.
    rate : float
        Firing rate of a channel in Hz.
    step : float
        Length of a time step in ms.
    """
    drawn = rng.random((2, steps, channels)) < rate * step / 1000.0
    return np.concatenate([drawn, drawn[:, ::-1]])


def present(
    rng: np.random.Generator, pattern: Array, steps: int, jitter: float, noise: float
) -> Array:
    """One noisy showing of ``pattern`` in a trial of ``steps``; bool, shape (step, channel).

    Parameters
    ----------
    rng : numpy.random.Generator
    pattern : array
        bool, shape (step, channel), at most ``steps`` long; silence follows it.
    steps : int
        Length of the trial.
    jitter : float
        Standard deviation of each spike's displacement, in steps.
    noise : float
        Probability of a spurious spike per channel and step while the pattern is shown.
    """
    shown = np.zeros((steps, pattern.shape[1]), bool)
    when, channel = np.nonzero(pattern)
    moved = np.rint(when + rng.normal(0.0, jitter, when.size)).astype(int)
    shown[np.clip(moved, 0, len(pattern) - 1), channel] = True
    shown[: len(pattern)] |= rng.random(pattern.shape) < noise
    return shown


class Answer(NamedTuple):
    """What the readout says about one trial."""

    evidence: Any
    """float32, shape (sample, class): linear readout of the liquid at each sample."""
    attention: Any
    """float32, shape (class, sample): weight of each sample in a class's score; rows sum to 1."""
    probability: Any
    """float32, shape (class,)."""
    loss: Any
    """Cross-entropy in nats."""


class Readout(NamedTuple):
    """A linear readout, its first weights and its two compiled steps."""

    start: tuple[Any, Any]
    answer: Callable[[tuple[Any, Any], Array, int], Answer]
    learn: Callable[[tuple[Any, Any], Array, int], tuple[tuple[Any, Any], Answer]]


def build_readout(units: int, classes: int, learning_rate: float) -> Readout:
    """Linear readout with attention over time, trained by the delta rule.

    At each sample the evidence is linear in the liquid, ``W x + b``. A class's score is the mean
    of its evidence over the samples, weighted by a softmax of that same evidence over time, so the
    map says when the class was recognised (Bahdanau, Cho and Bengio, ICLR 2015, for attention as a
    softmax over time). One gradient step per trial on the cross-entropy is the delta rule of
    Widrow and Hoff (1960), for a softmax output.
    """
    import jax
    import jax.numpy as jnp

    def respond(weights: tuple[Any, Any], liquid: Any, label: Any) -> tuple[Any, Answer]:
        matrix, offset = weights
        evidence = liquid @ matrix + offset
        attention = jax.nn.softmax(evidence, axis=0)
        scores = (attention * evidence).sum(axis=0)
        loss = -jax.nn.log_softmax(scores)[label]
        return loss, Answer(evidence, attention.T, jax.nn.softmax(scores), loss)

    @jax.jit
    def learn(weights: tuple[Any, Any], liquid: Any, label: Any) -> tuple[tuple[Any, Any], Answer]:
        gradient, answer = jax.grad(respond, has_aux=True)(weights, liquid, label)
        changed = jax.tree.map(lambda w, g: w - learning_rate * g, weights, gradient)
        return changed, answer

    @jax.jit
    def answer(weights: tuple[Any, Any], liquid: Any, label: Any) -> Answer:
        return respond(weights, liquid, label)[1]

    start = (jnp.zeros((units, classes), jnp.float32), jnp.zeros(classes, jnp.float32))
    return Readout(start, answer, learn)

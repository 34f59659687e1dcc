"""Trials of the demo one after another: patterns shown to the liquid, the readout learning.

This is the whole simulation as one iterator in model time. It stores nothing; what a trial means
as records is said in ``neurostore.demo.records``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from neurostore.demo import network, task
from neurostore.demo.network import Liquid, LiquidState, TrialRecord
from neurostore.demo.task import Answer

__all__ = ["Design", "Experiment", "Trial"]


@dataclass(frozen=True)
class Design:
    """What is shown, for how long and how noisily; times in ms, rates in Hz."""

    pattern: float = 250.0
    pause: float = 50.0
    rate: float = 20.0
    jitter: float = 6.0
    noise_rate: float = 2.0
    read_every: float = 25.0
    held_out: float = 0.25
    window: int = 20
    learning_rate: float = 0.03

    @property
    def trial_seconds(self) -> float:
        """Length of a trial in seconds of model time."""
        return (self.pattern + self.pause) / 1000.0


@dataclass(frozen=True)
class Trial:
    """One showing of a pattern, and everything that came of it; plain NumPy arrays."""

    number: int
    start: float
    """Seconds of model time since the experiment began."""
    label: int
    training: bool
    inputs: npt.NDArray[np.bool_]
    """Shape (step, channel)."""
    record: TrialRecord
    samples: npt.NDArray[np.float32]
    """What the readout saw: the liquid, shape (sample, neuron)."""
    sample_times: npt.NDArray[np.float64]
    """Seconds since the trial's start, shape (sample,)."""
    answer: Answer
    before: LiquidState
    after: LiquidState
    accuracy: float
    """Share of correct answers in the last trials of this phase."""

    @property
    def correct(self) -> bool:
        """Whether the readout named the pattern that was shown."""
        return int(np.argmax(self.answer.probability)) == self.label


@dataclass(frozen=True)
class Experiment:
    """``seconds`` of model time from one ``seed``; the same seed gives the same trials.

    Examples
    --------
    >>> experiment = Experiment(seconds=3.0, seed=0)
    >>> experiment.trials, experiment.training
    (10, 8)
    """

    seconds: float
    seed: int
    design: Design = field(default_factory=Design)
    parameters: network.Parameters = field(default_factory=network.Parameters)

    @property
    def trials(self) -> int:
        """Number of trials, training and held out together."""
        return max(2, round(self.seconds / self.design.trial_seconds))

    @property
    def training(self) -> int:
        """Number of trials that the readout learns from; the others come after them."""
        return self.trials - max(1, int(self.trials * self.design.held_out))

    def build(self) -> Liquid:
        """Return the liquid as it is before the first trial."""
        return network.build_liquid(self.parameters, self.seed)

    def run(self, liquid: Liquid) -> Iterator[Trial]:
        """Run all trials; in those held out nothing learns, neither synapses nor readout."""
        import jax

        design, p = self.design, self.parameters
        rng = np.random.default_rng([self.seed, 1])
        key = jax.random.key(self.seed)
        steps, shown = (round(t / p.step) for t in (design.pattern + design.pause, design.pattern))
        patterns = task.draw_patterns(rng, p.inputs, shown, design.rate, p.step)
        readout = task.build_readout(p.neurons, len(task.CLASSES), design.learning_rate)
        chosen, sample_times = _sampling(design, p)
        state, weights = liquid.start, readout.start
        hits: dict[bool, deque[bool]] = {
            True: deque(maxlen=design.window),
            False: deque(maxlen=self.trials),
        }
        for number, label in enumerate(self._labels(rng)):
            training = number < self.training
            inputs = task.present(
                rng,
                patterns[label],
                steps,
                design.jitter / p.step,
                design.noise_rate * p.step / 1000.0,
            )
            before = state
            state, record = liquid.run(
                state,
                inputs.astype(np.float32),
                jax.random.fold_in(key, number),
                1.0 if training else 0.0,
            )
            samples = record.liquid[chosen]
            if training:
                weights, answer = readout.learn(weights, samples, label)
            else:
                answer = readout.answer(weights, samples, label)
            answer, record, samples = jax.device_get((answer, record, samples))
            hits[training].append(int(np.argmax(answer.probability)) == label)
            yield Trial(
                number=number,
                start=round(number * design.trial_seconds, 6),
                label=label,
                training=training,
                inputs=inputs,
                record=record,
                samples=samples,
                sample_times=sample_times,
                answer=answer,
                before=before,
                after=state,
                accuracy=float(np.mean(hits[training])),
            )

    def _labels(self, rng: np.random.Generator) -> list[int]:
        """Every class equally often in each phase, in random order."""
        sizes = self.training, self.trials - self.training
        phases = [rng.permutation(np.resize(np.arange(len(task.CLASSES)), n)) for n in sizes]
        return [int(label) for label in np.concatenate(phases)]


def _sampling(design: Design, p: network.Parameters) -> tuple[slice, npt.NDArray[np.float64]]:
    """Which samples of the liquid the readout sees, and when they are taken."""
    every = round(design.read_every / p.step) // p.sample_every
    count = round(design.pattern / p.step) // p.sample_every
    chosen = slice(every - 1, count, every)
    when = (np.arange(count)[chosen] + 1) * p.sample_every * p.step / 1000.0
    return chosen, np.round(when, 6)

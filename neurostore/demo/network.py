"""A small liquid state machine: spiking neurons, plastic synapses, a homeostatic threshold.

This is the simulation of the demo and nothing else: it knows neither stores nor tasks. A trial is
one compiled `jax.lax.scan` over time steps; everything that is random in it comes from a key that
the caller passes. JAX is imported when a network is built.

The model, with potentials and synaptic drives in mV and times in ms:

- Leaky integrate-and-fire neurons with exponential synapses,
  ``tau_m dV/dt = -(V - E_L) + g_exc - g_inh + bias``, ``tau_s dg/dt = -g``, and ``g += w`` at a
  presynaptic spike (Dayan and Abbott, *Theoretical Neuroscience*, 2001, section 5.4). The decays
  are exact over one step (Rotter and Diesmann, *Biological Cybernetics* 81, 1999).
- Reservoir of excitatory and inhibitory neurons as a fading memory of its input (Maass,
  Natschläger and Markram, *Neural Computation* 14, 2002).
- Pair-based additive STDP with hard bounds on excitatory-to-excitatory synapses (Song, Miller and
  Abbott, *Nature Neuroscience* 3, 2000), in its form with one trace per neuron (Morrison, Diesmann
  and Gerstner, *Biological Cybernetics* 98, 2008).
- Homeostatic threshold, ``theta += eta (spike - rate dt)`` (Lazar, Pipa and Triesch, *Frontiers in
  Computational Neuroscience* 3:23, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Liquid", "LiquidState", "Parameters", "TrialRecord", "Wiring", "build_liquid"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parameters:
    """Constants of the liquid; times in ms, potentials and drives in mV, rates in Hz."""

    excitatory: int = 240
    inhibitory: int = 60
    inputs: int = 40
    step: float = 1.0
    connectivity: float = 0.1
    input_connectivity: float = 0.15
    # Membrane
    rest: float = -65.0
    reset: float = -65.0
    threshold: float = -50.0
    tau_membrane: float = 20.0
    refractory: float = 2.0
    bias: tuple[float, float] = (4.0, 10.0)
    noise: float = 1.0
    # Synapses: the drive that one spike adds
    tau_excitatory: float = 5.0
    tau_inhibitory: float = 10.0
    weight_excitatory: float = 4.0
    weight_to_inhibitory: float = 6.0
    weight_inhibitory: float = 8.0
    weight_input: float = 20.0
    # STDP
    tau_plus: float = 20.0
    tau_minus: float = 20.0
    potentiation: float = 0.10
    depression: float = 0.11
    weight_max: float = 10.0
    # Homeostasis
    target_rate: float = 8.0
    homeostasis: float = 0.15
    # Memory of the readout
    tau_liquid: float = 30.0
    sample_every: int = 5

    @property
    def neurons(self) -> int:
        """Number of neurons of both types; excitatory ones come first."""
        return self.excitatory + self.inhibitory


class Wiring(NamedTuple):
    """What never changes: who is connected to whom."""

    adjacency: Array
    """bool, shape (pre, post)."""
    weights: Array
    """float32, shape (pre, post), mV of drive at a spike; rows of inhibitory neurons negative."""
    input_weights: Array
    """float32, shape (channel, post), mV of drive at an input spike."""
    bias: Array
    """float32, shape (neuron,), constant drive in mV."""
    pre: Array
    """int, shape (synapse,): presynaptic neuron of each plastic synapse."""
    post: Array
    """int, shape (synapse,), ascending: its postsynaptic neuron."""


class LiquidState(NamedTuple):
    """Everything that moves; shape (neuron,), save for the weights of the plastic synapses."""

    potential: Any
    drive_excitatory: Any
    drive_inhibitory: Any
    rest_steps: Any
    threshold: Any
    trace_pre: Any
    trace_post: Any
    liquid: Any
    weights: Any


class TrialRecord(NamedTuple):
    """What one trial leaves behind."""

    spikes: Any
    """bool, shape (step, neuron)."""
    peak: Any
    """float32, shape (step, neuron): potential in mV at a spike, before the reset."""
    liquid: Any
    """float32, shape (sample, neuron): spikes low-pass filtered with `Parameters.tau_liquid`."""


class Liquid(NamedTuple):
    """A built network: its constants, its wiring, its first state and its compiled trial."""

    parameters: Parameters
    wiring: Wiring
    start: LiquidState
    run: Callable[[LiquidState, Array, Any, float], tuple[LiquidState, TrialRecord]]
    """``run(state, input spikes (step, channel), key, plasticity 0 to 1)``."""

    def weights(self, state: LiquidState) -> Array:
        """All weights as they stand, float32, shape (pre, post), in mV."""
        weights = self.wiring.weights.copy()
        weights[self.wiring.pre, self.wiring.post] = np.asarray(state.weights)
        return weights


def build_liquid(parameters: Parameters, seed: int) -> Liquid:
    """Draw the wiring from ``seed`` and compile nothing yet: the first trial does."""
    wiring = _draw_wiring(parameters, np.random.default_rng(seed))
    return Liquid(parameters, wiring, _first_state(parameters, wiring), _trial(parameters, wiring))


def _draw_wiring(p: Parameters, rng: np.random.Generator) -> Wiring:
    adjacency = rng.random((p.neurons, p.neurons)) < p.connectivity
    np.fill_diagonal(adjacency, False)
    mean = np.full((p.neurons, p.neurons), p.weight_excitatory)
    mean[: p.excitatory, p.excitatory :] = p.weight_to_inhibitory
    mean[p.excitatory :, :] = -p.weight_inhibitory
    weights = np.where(adjacency, mean * rng.uniform(0.5, 1.5, mean.shape), 0.0)
    reached = rng.random((p.inputs, p.neurons)) < p.input_connectivity
    reached[:, p.excitatory :] = False
    input_weights = reached * p.weight_input * rng.uniform(0.5, 1.5, reached.shape)
    bias = rng.uniform(*p.bias, p.neurons)
    post, pre = np.nonzero(adjacency[: p.excitatory, : p.excitatory].T)
    return Wiring(
        adjacency=adjacency,
        weights=weights.astype(np.float32),
        input_weights=input_weights.astype(np.float32),
        bias=bias.astype(np.float32),
        pre=pre,
        post=post,
    )


def _first_state(p: Parameters, wiring: Wiring) -> LiquidState:
    import jax.numpy as jnp

    zeros = jnp.zeros(p.neurons, jnp.float32)
    return LiquidState(
        potential=zeros + p.rest,
        drive_excitatory=zeros,
        drive_inhibitory=zeros,
        rest_steps=zeros,
        threshold=zeros + p.threshold,
        trace_pre=zeros,
        trace_post=zeros,
        liquid=zeros,
        weights=jnp.asarray(wiring.weights[wiring.pre, wiring.post]),
    )


def _trial(
    p: Parameters, wiring: Wiring
) -> Callable[[LiquidState, Array, Any, float], tuple[LiquidState, TrialRecord]]:
    import jax
    import jax.numpy as jnp

    neurons = _neurons(p, wiring)
    stdp = _stdp(p, wiring)

    def advance(
        state: LiquidState, moment: tuple[Any, Any, Any]
    ) -> tuple[LiquidState, TrialRecord]:
        inputs, noise, plasticity = moment
        state, spikes, peak = neurons(state, inputs, noise)
        state = stdp(state, spikes, plasticity)
        surplus = spikes - p.target_rate * p.step / 1000.0
        state = state._replace(
            threshold=state.threshold + plasticity * p.homeostasis * surplus,
            liquid=state.liquid * math.exp(-p.step / p.tau_liquid) + spikes,
        )
        return state, TrialRecord(spikes > 0, peak, state.liquid)

    @jax.jit
    def run(
        state: LiquidState, inputs: Any, key: Any, plasticity: Any
    ) -> tuple[LiquidState, TrialRecord]:
        steps = inputs.shape[0]
        noise = jax.random.normal(key, (steps, p.neurons), jnp.float32)
        rate = jnp.full(steps, plasticity, jnp.float32)
        state, record = jax.lax.scan(advance, state, (inputs, noise, rate))
        every = slice(p.sample_every - 1, None, p.sample_every)
        return state, record._replace(liquid=record.liquid[every])

    return run


def _neurons(p: Parameters, wiring: Wiring) -> Callable[..., tuple[LiquidState, Any, Any]]:
    """One time step of membranes and synapses: state, spikes (0 or 1), potential at the spike."""
    import jax
    import jax.numpy as jnp

    keep_membrane = math.exp(-p.step / p.tau_membrane)
    keep_excitatory = math.exp(-p.step / p.tau_excitatory)
    keep_inhibitory = math.exp(-p.step / p.tau_inhibitory)
    jitter = p.noise * math.sqrt(1.0 - keep_membrane**2)
    n = p.excitatory
    pre, post = jnp.asarray(wiring.pre), jnp.asarray(wiring.post)
    to_inhibitory = jnp.asarray(wiring.weights[:n, n:])
    from_inhibitory = jnp.asarray(-wiring.weights[n:])
    bias, input_weights = jnp.asarray(wiring.bias), jnp.asarray(wiring.input_weights)

    def excite(spikes: Any, weights: Any) -> Any:
        arriving = weights * spikes[pre]
        recurrent = jax.ops.segment_sum(arriving, post, n, indices_are_sorted=True)
        return jnp.concatenate([recurrent, spikes[:n] @ to_inhibitory])

    def advance(state: LiquidState, inputs: Any, noise: Any) -> tuple[LiquidState, Any, Any]:
        drive = bias + state.drive_excitatory - state.drive_inhibitory
        target = p.rest + drive
        potential = target + (state.potential - target) * keep_membrane + jitter * noise
        potential = jnp.where(state.rest_steps > 0, p.reset, potential)
        spikes = (potential >= state.threshold).astype(jnp.float32)
        excitation = excite(spikes, state.weights) + inputs @ input_weights
        inhibition = spikes[n:] @ from_inhibitory
        fired = spikes > 0
        rest = jnp.where(fired, p.refractory / p.step, jnp.maximum(state.rest_steps - 1.0, 0.0))
        moved = state._replace(
            potential=jnp.where(fired, p.reset, potential),
            drive_excitatory=state.drive_excitatory * keep_excitatory + excitation,
            drive_inhibitory=state.drive_inhibitory * keep_inhibitory + inhibition,
            rest_steps=rest,
        )
        return moved, spikes, jnp.where(fired, potential, 0.0)

    return advance


def _stdp(p: Parameters, wiring: Wiring) -> Callable[..., LiquidState]:
    """One time step of plasticity on the excitatory-to-excitatory synapses."""
    import jax.numpy as jnp

    before, after = jnp.asarray(wiring.pre), jnp.asarray(wiring.post)
    keep_plus, keep_minus = math.exp(-p.step / p.tau_plus), math.exp(-p.step / p.tau_minus)

    def advance(state: LiquidState, spikes: Any, plasticity: Any) -> LiquidState:
        pre, post = state.trace_pre * keep_plus, state.trace_post * keep_minus
        # A spike meets the traces of earlier spikes only, so a coincidence changes nothing.
        growth = p.potentiation * pre[before] * spikes[after]
        decay = p.depression * spikes[before] * post[after]
        weights = jnp.clip(state.weights + plasticity * (growth - decay), 0.0, p.weight_max)
        return state._replace(weights=weights, trace_pre=pre + spikes, trace_post=post + spikes)

    return advance

"""NIR graphs: a record for each node that has parameters, the graph kept with every one.

A linear map is the `weights` of a ``network_snapshot`` (transposed: NIR has (post, pre)); the
parameters of a population of neurons, and the bias of an affine map, are its `states`.  Nodes with
other shapes (convolutions, pooling) have no place in a snapshot and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from neurostore import builders
from neurostore.errors import ValidationError
from neurostore.optional import needs
from neurostore.times import TimeLike

__all__ = ["from_graph", "to_graph"]

_WEIGHT = "weight"


def from_graph(graph: Any, *, timestamp: TimeLike = 0.0) -> xr.DataTree:
    """Return a NIR graph as a tree of ``network_snapshot`` records.

    Parameters
    ----------
    graph
        ``nir.NIRGraph`` of linear, affine and one-dimensional neuron nodes.
    timestamp
        Moment of the parameters.

    Returns
    -------
    xarray.DataTree
        One node for each node of the graph that has parameters.

    Raises
    ------
    ValidationError
        Names every node that a snapshot cannot hold.

    Examples
    --------
    >>> import nir, numpy as np
    >>> graph = nir.NIRGraph.from_list(nir.Linear(np.array([[1.0, 2.0]])))
    >>> tree = from_graph(graph)
    >>> tree["linear"]["weights"].dims, tree["linear"]["weights"].shape
    (('pre', 'post'), (2, 1))
    """
    parameters = {name: _parameters(node) for name, node in graph.nodes.items()}
    refused = [
        f"node {name!r} is a {type(graph.nodes[name]).__name__}, which a snapshot cannot hold"
        for name, found in parameters.items()
        if found is None
    ]
    if refused:
        raise ValidationError.of("NIR graph", refused)
    told = {
        "edges": [list(edge) for edge in graph.edges],
        "ends": {name: _shape(node) for name, node in graph.nodes.items() if not parameters[name]},
    }
    nodes = {
        f"/{name}": _snapshot(name, graph.nodes[name], found, told, timestamp)
        for name, found in parameters.items()
        if found
    }
    return xr.DataTree.from_dict(nodes)


def _parameters(node: Any) -> dict[str, np.ndarray[Any, Any]] | None:
    """Return the arrays of a node; None where they do not fit a snapshot."""
    if type(node).__name__ in ("Input", "Output"):
        return {}
    found = {
        name: np.asarray(value)
        for name, value in vars(node).items()
        if name not in ("input_type", "output_type", "metadata") and value is not None
    }
    matrix = found.get(_WEIGHT)
    rest = {name: array for name, array in found.items() if name != _WEIGHT}
    fits = (matrix is None or matrix.ndim == 2) and all(a.ndim == 1 for a in rest.values())
    known = type(node).__name__ in _NODES and len({a.dtype for a in rest.values()}) <= 1
    return found if fits and known and found else None


#: Nodes whose parameters are a matrix, or one number for each neuron.
_NODES = ("Affine", "CubaLI", "CubaLIF", "I", "IF", "LI", "LIF", "Linear", "Scale", "Threshold")


def _shape(node: Any) -> dict[str, Any]:
    shapes = {key: np.asarray(value).tolist() for key, value in node.input_type.items()}
    return {"type": type(node).__name__, "shape": shapes["input"]}


def _snapshot(
    name: str,
    node: Any,
    parameters: Mapping[str, np.ndarray[Any, Any]],
    told: dict[str, Any],
    timestamp: TimeLike,
) -> xr.Dataset:
    values: dict[str, Any] = {}
    rest = [key for key in parameters if key != _WEIGHT]
    if _WEIGHT in parameters:
        values["weights"] = parameters[_WEIGHT].T
    if rest:
        values["states"] = np.stack([parameters[key] for key in rest], axis=1)
    return builders.build(
        "network_snapshot",
        values,
        timestamp=timestamp,
        coords={"state": rest} if rest else None,
        details={"nir": {"node": name, "type": type(node).__name__, **told}},
    )


def to_graph(tree: xr.DataTree | Mapping[str, xr.Dataset]) -> Any:
    """Return the NIR graph that :func:`from_graph` took apart.

    Raises
    ------
    ValidationError
        A record did not come from a graph, or one of the graph's nodes is missing.
    """
    with needs("interop", "NIR"):
        import nir

    listed = [d for d in _datasets(tree) if "nir" in d.neuro.metadata]
    if not listed:
        raise ValidationError("no record of a NIR graph; expected those that from_graph made")
    nodes: dict[str, Any] = {}
    for ds in listed:
        told = ds.neuro.metadata["nir"]
        nodes[told["node"]] = getattr(nir, told["type"])(**_arguments(ds))
    told = listed[0].neuro.metadata["nir"]
    for name, end in told["ends"].items():
        shape = np.array(end["shape"])
        kind = "input_type" if end["type"] == "Input" else "output_type"
        nodes[name] = getattr(nir, end["type"])(**{kind: shape})
    missing = sorted({name for edge in told["edges"] for name in edge} - nodes.keys())
    if missing:
        raise ValidationError(
            f"nodes {', '.join(missing)} are missing, expected all that the graph has edges to"
        )
    return nir.NIRGraph(nodes, [tuple(edge) for edge in told["edges"]])


def _datasets(tree: xr.DataTree | Mapping[str, xr.Dataset]) -> list[xr.Dataset]:
    if isinstance(tree, xr.DataTree):
        return [node.to_dataset() for node in tree.subtree if node.data_vars]
    return list(tree.values())


def _arguments(ds: xr.Dataset) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    if "weights" in ds:
        found[_WEIGHT] = ds["weights"].values.T
    if "states" in ds:
        found |= {str(key): ds["states"].sel(state=key).values for key in ds["state"].values}
    return found

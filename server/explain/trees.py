"""The tree ensemble of an ONNX model, as flat arrays, read without the onnx package.

Read are graphs whose one input goes into one `TreeEnsembleRegressor` or `TreeEnsembleClassifier` of
`ai.onnx.ml` (through nothing but Cast and Identity, or by `lookups`), whatever comes behind it:
attributions are of the raw score, before any post transform. Shapley values along the paths need
how many training rows went through each node: the standard attribute `nodes_hitrates`. Most
converters leave it out.

The operator `TreeEnsemble` of `ai.onnx.ml` 5 has no place for the rows of a leaf: it is not read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from headrace.errors import UnimplementedError
from server.explain.lookups import Lookups, read_lookups
from server.file_words import words_in
from server.pb import onnx_trees_pb2 as pb

LEQ, LT, GTE, GT, EQ, NEQ = range(6)
_MODES = {
    b"BRANCH_LEQ": LEQ, b"BRANCH_LT": LT, b"BRANCH_GTE": GTE,
    b"BRANCH_GT": GT, b"BRANCH_EQ": EQ, b"BRANCH_NEQ": NEQ,
}  # fmt: skip
_LEAF = b"LEAF"
TREES = b"TreeEnsemble"  # how the names of the operators begin
KINDS = {"TreeEnsembleRegressor": "target", "TreeEnsembleClassifier": "class"}
_DOMAIN = "ai.onnx.ml"
_PASSING = {"Cast", "Identity"}  # keep what is which feature
_DOUBLE = 11  # ONNX's number of the data type
_ID_MAX = 1 << 31
# Counts are kept as float32, and some trainers weight them.
_COVER_TOLERANCE = 1e-3
NODES_MAX = 1 << 22
FEATURES_MAX = 1 << 16


@dataclass(frozen=True)
class Ensemble:
    """Trees whose leaves' weights add up: raw score [outputs] = base + Σ weights of the leaves hit.

    N nodes. `feature` int32, `threshold` float64, `mode` uint8 and `nan_yes` uint8 say where a row
    goes at an inner node: to `yes` where the comparison holds (or the value is NaN and `nan_yes` is
    set), else to `no` (both int32; −1: a leaf). `cover` float64: the training rows that came by.
    All [N]. Node n adds weight[weight_start[n]:weight_start[n + 1]] to the outputs
    `weight_output` of the same places. `roots` int32 [trees]; `base` float64 [outputs]. With
    `lookups`, features behind a row's own are the columns of these.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    mode: NDArray[np.uint8]
    nan_yes: NDArray[np.uint8]
    yes: NDArray[np.int32]
    no: NDArray[np.int32]
    cover: NDArray[np.float64]
    weight_start: NDArray[np.int64]
    weight_output: NDArray[np.int32]
    weight: NDArray[np.float64]
    base: NDArray[np.float64]
    lookups: Lookups | None = None

    @property
    def outputs(self) -> int:
        """How many raw scores a row has."""
        return len(self.base)

    @property
    def features(self) -> int:
        """How many features a row has at least."""
        if self.lookups is not None:
            return self.lookups.width
        return int(self.feature.max(initial=-1)) + 1

    @property
    def players(self) -> NDArray[np.int32]:
        """The feature of a row that decides at each node."""
        if self.lookups is None:
            return self.feature
        own = np.arange(self.lookups.width, dtype=np.int32)
        players: NDArray[np.int32] = np.concatenate([own, self.lookups.owner])[self.feature]
        return players


def has_trees(model: bytes | Path) -> bool:
    """Return whether it is worth to look for trees in an ONNX file."""
    return TREES in model if isinstance(model, bytes) else bool(words_in(model, (TREES,)))


def file_with_trees(model: bytes | Path) -> bytes | None:
    """Return an ONNX file where trees may be in it."""
    if not has_trees(model):
        return None
    return model if isinstance(model, bytes) else model.read_bytes()


def read_ensemble(model: bytes) -> Ensemble:
    """Return the trees of the ONNX file `model`, checked: whatever they say, no index leads out.

    Raises UnimplementedError, naming what is in the way, for a model that is not as above.
    """
    try:
        graph = pb.Model.FromString(model).graph
    except DecodeError:
        raise _no("the file is no ONNX model") from None
    node, lookups = _only_ensemble(graph)
    ensemble = ensemble_of_node(node)
    _check_cover(ensemble)
    if lookups is not None:
        if ensemble.features > lookups.width + len(lookups.owner):
            raise _no("a split is on a feature that rows do not have")
        ensemble = replace(ensemble, lookups=lookups)
    if aggregate_of({each.name: each for each in node.attribute}) == b"AVERAGE":
        return replace(ensemble, weight=ensemble.weight / len(ensemble.roots))
    return ensemble


def _no(why: str) -> UnimplementedError:
    return UnimplementedError(f"its trees cannot be explained as such: {why}")


def _only_ensemble(graph: Any) -> tuple[Any, Lookups | None]:
    """Return the one ensemble that all of the input goes into, and nothing else; or which the
    input goes into by lookups alone, and these."""
    found = [each for each in graph.node if each.op_type in KINDS and each.domain == _DOMAIN]
    if len(found) != 1:
        raise _no(f"the graph has {len(found)} tree ensembles with a cover, expected 1")
    if len(graph.input) != 1:
        raise _no(f"the graph has {len(graph.input)} inputs, expected 1")
    lookups = read_lookups(graph, found[0].input[0]) if found[0].input else None
    if lookups is not None:
        return found[0], lookups
    same = {graph.input[0].name}
    for node in graph.node:  # sorted topologically, by ONNX
        taken = same.intersection(node.input)
        if not taken or node is found[0]:
            continue
        if node.op_type not in _PASSING:
            raise _no(f"its input goes into {node.op_type}, too")
        same.update(node.output)
    if not same.intersection(found[0].input):
        raise _no("its input does not go straight into the trees")
    return found[0], None


# What is evaluated is explained, too: who reads the same trees while they are held shares them.
_held: Final[WeakValueDictionary[bytes, Ensemble]] = WeakValueDictionary()


def ensemble_of_node(node: Any) -> Ensemble:
    """Return the trees of an operator, as `ensemble_of` does."""
    key = blake2b(node.SerializeToString(deterministic=True)).digest()
    ensemble = _held.get(key)
    if ensemble is None:
        attributes = {each.name: each for each in node.attribute}
        _held[key] = ensemble = ensemble_of(attributes, KINDS[node.op_type])
    return ensemble


def ensemble_of(attributes: dict[str, Any], kind: str) -> Ensemble:
    """Return the trees of an operator's attributes, whose weights are of a `kind`: target or class.

    Weights are as they are stored, however they are aggregated; `cover` may hold anything, [0] too.
    Raises UnimplementedError as `read_ensemble` does.
    """
    ids = _keys(attributes, "nodes")
    count = len(ids)
    if not 0 < count <= NODES_MAX:
        raise _no(f"it has {count} nodes, expected 1 to {NODES_MAX}")
    order = np.argsort(ids, kind="stable")
    ranked = ids[order]
    if (ranked[1:] == ranked[:-1]).any():
        raise _no("two nodes have one id")
    modes = attributes["nodes_modes"].strings if "nodes_modes" in attributes else ()
    mode = np.array([_MODES.get(each, -1 if each == _LEAF else -2) for each in modes], np.int64)
    if len(mode) != count or (mode == -2).any():
        raise _no("a node has an unknown mode")
    inner = mode >= 0
    trees = ids >> 32
    yes, no = (
        np.where(inner, _find(ranked, order, trees << 32 | _small(attributes, name, count)), -1)
        for name in ("nodes_truenodeids", "nodes_falsenodeids")
    )
    if (yes[inner] < 0).any() or (no[inner] < 0).any():
        raise _no("a node's child is not there")
    roots = _roots(yes, no, trees)
    feature = np.where(inner, _small(attributes, "nodes_featureids", count), 0)
    if feature.max(initial=0) >= FEATURES_MAX:
        raise _no("a feature's number is too large")
    nan_yes = np.zeros(count, np.uint8)
    if "nodes_missing_value_tracks_true" in attributes:
        nan_yes = _small(attributes, "nodes_missing_value_tracks_true", count).astype(np.uint8)
    threshold = _floats(attributes, "nodes_values")
    if len(threshold) != count:
        raise _no("its nodes and their values are not as many")
    return Ensemble(
        roots=roots.astype(np.int32),
        feature=feature.astype(np.int32),
        threshold=threshold,
        mode=np.where(inner, mode, 0).astype(np.uint8),
        nan_yes=nan_yes,
        yes=yes.astype(np.int32),
        no=no.astype(np.int32),
        cover=_floats(attributes, "nodes_hitrates"),
        **_weights(attributes, kind, ranked, order, inner),
    )


def _roots(
    yes: NDArray[np.int64], no: NDArray[np.int64], trees: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the roots, by tree. Every node is reached from its root on one way alone."""
    children = np.concatenate([yes[yes >= 0], no[no >= 0]])
    parents = np.bincount(children, minlength=len(yes))
    roots = np.flatnonzero(parents == 0)
    if (parents > 1).any():
        raise _no("a node has two parents")
    if len(np.unique(trees[roots])) != len(roots) or len(roots) != len(np.unique(trees)):
        raise _no("a tree has not one root")
    reached, level = len(roots), roots
    while len(level):  # what is on a cycle has a parent, and no root above it
        level = np.concatenate([yes[level], no[level]])
        level = level[level >= 0]
        reached += len(level)
    if reached != len(yes):
        raise _no("a node is above itself")
    return roots


def _check_cover(ensemble: Ensemble) -> None:
    cover, inner = ensemble.cover, ensemble.yes >= 0
    if len(cover) != len(inner) or not np.isfinite(cover).all() or (cover < 0).any():
        raise _no("nodes_hitrates does not hold each node's training rows")
    halves = cover[ensemble.yes[inner]] + cover[ensemble.no[inner]]
    if (cover[inner] <= 0).any() or not np.allclose(halves, cover[inner], rtol=_COVER_TOLERANCE):
        raise _no("nodes_hitrates does not hold each node's training rows")


def _weights(
    attributes: dict[str, Any],
    kind: str,
    ranked: NDArray[np.int64],
    order: NDArray[np.int64],
    inner: NDArray[np.bool_],
) -> dict[str, Any]:
    at = _find(ranked, order, _keys(attributes, kind))
    outputs_of = _small(attributes, f"{kind}_ids", len(at))
    weight = _floats(attributes, f"{kind}_weights")
    if len(weight) != len(at) or (at < 0).any() or inner[at].any():
        raise _no("its weights do not belong to its leaves")
    count, outputs_of = _outputs(attributes, kind, outputs_of)
    base = _floats(attributes, "base_values")
    if len(base) not in (0, count):
        raise _no(f"it has {len(base)} base values, expected {count}")
    if aggregate_of(attributes) not in (b"SUM", b"AVERAGE"):
        raise _no(f"it aggregates by {aggregate_of(attributes).decode(errors='replace')[:16]}")
    by_node = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[by_node], np.arange(len(inner) + 1))
    return {
        "weight_start": starts.astype(np.int64),
        "weight_output": outputs_of[by_node].astype(np.int32),
        "weight": np.ascontiguousarray(weight[by_node]),
        "base": base if len(base) else np.zeros(count),
    }


def aggregate_of(attributes: dict[str, Any]) -> bytes:
    """Return how an operator's weights are aggregated."""
    value = attributes["aggregate_function"].s if "aggregate_function" in attributes else b"SUM"
    return bytes(value)


def _outputs(
    attributes: dict[str, Any], kind: str, ids: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64]]:
    """Return how many raw scores there are, and which each weight goes to."""
    if kind == "target":
        count = attributes["n_targets"].i if "n_targets" in attributes else 1
    else:
        numbers, texts = (
            attributes.get(f"classlabels_{each}", pb.Attribute()) for each in ("int64s", "strings")
        )
        count = len(numbers.ints) or len(texts.strings)
        if count == 2 and len(np.unique(ids)) == 1:  # one score decides between two classes
            return 1, np.zeros_like(ids)
    if not 0 < count <= FEATURES_MAX or ids.max(initial=0) >= count:
        raise _no("a leaf's weight goes to an output that it does not have")
    return count, ids


def _keys(attributes: dict[str, Any], prefix: str) -> NDArray[np.int64]:
    """Return tree and node number as one."""
    name = f"{prefix}_treeids"
    count = len(attributes[name].ints) if name in attributes else 0
    trees = _small(attributes, name, count)
    return trees << 32 | _small(attributes, f"{prefix}_nodeids", count)


def _find(
    ranked: NDArray[np.int64], order: NDArray[np.int64], keys: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the places of nodes, −1 where there is none."""
    places = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)
    return np.where(ranked[places] == keys, order[places], -1)


def _small(attributes: dict[str, Any], name: str, count: int) -> NDArray[np.int64]:
    """Return whole numbers of an attribute, all in [0, 2³¹)."""
    values = np.array(attributes[name].ints if name in attributes else (), np.int64)
    if len(values) != count or ((values < 0) | (values >= _ID_MAX)).any():
        raise _no(f"{name} is not one small number for each entry")
    return values


def _floats(attributes: dict[str, Any], name: str) -> NDArray[np.float64]:
    """Return numbers, that may be single floats or a tensor of doubles (`…_as_tensor`)."""
    if name in attributes:
        return np.array(attributes[name].floats, np.float32).astype(np.float64)
    attribute = attributes.get(f"{name}_as_tensor")
    if attribute is None:
        return np.empty(0)
    tensor = attribute.t
    dtype = np.dtype("<f8" if tensor.data_type == _DOUBLE else "<f4")
    if tensor.raw_data:
        if len(tensor.raw_data) % dtype.itemsize:
            raise _no(f"{name} is cut off")
        return np.frombuffer(tensor.raw_data, dtype).astype(np.float64)
    return np.array(tensor.double_data or tensor.float_data, np.float64)

"""A model's configuration as a model sees it, and the names of types."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

# Triton's numbers of the types are their places in this list.
_TYPES: list[tuple[str, Any]] = [
    ("TYPE_INVALID", None),
    ("TYPE_BOOL", np.bool_),
    ("TYPE_UINT8", np.uint8),
    ("TYPE_UINT16", np.uint16),
    ("TYPE_UINT32", np.uint32),
    ("TYPE_UINT64", np.uint64),
    ("TYPE_INT8", np.int8),
    ("TYPE_INT16", np.int16),
    ("TYPE_INT32", np.int32),
    ("TYPE_INT64", np.int64),
    ("TYPE_FP16", np.float16),
    ("TYPE_FP32", np.float32),
    ("TYPE_FP64", np.float64),
    ("TYPE_STRING", np.object_),
]
_BY_NAME = dict(_TYPES[1:])


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """Return NumPy's type of a configuration's `data_type`. Raises KeyError."""
    return _BY_NAME[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """Return NumPy's type of one of Triton's numbers, None where it has none."""
    return _TYPES[data_type][1] if 0 < data_type < len(_TYPES) else None


def numpy_to_triton_type(data_type: Any) -> int | None:
    """Return Triton's number of a type of NumPy, None where there is none."""
    if data_type == np.bytes_:
        return 13
    for number, (_, known) in enumerate(_TYPES):
        if known is not None and data_type == known:
            return number
    return None


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return what a configuration says of an input, None where it says nothing."""
    return _named(model_config.get("input", []), name)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return what a configuration says of an output, None where it says nothing."""
    return _named(model_config.get("output", []), name)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    for entry in entries:
        if entry["name"] == name:
            return entry
    return None


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    """Return whether a request may have any number of responses."""
    policy = model_config.get("model_transaction_policy", {})
    return bool(policy.get("decoupled", False))


class ModelConfig:
    """What `auto_complete_config` fills in. A contradiction raises ValueError, as in Triton."""

    def __init__(self, model_config: str) -> None:
        """Take a configuration as JSON."""
        self._config: dict[str, Any] = json.loads(model_config)
        self._where = f"auto-complete-config function for model '{self._config['name']}'"

    def as_dict(self) -> dict[str, Any]:
        """Return it, to be read only."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set it; not to less than is configured."""
        configured = self._config["max_batch_size"]
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in {self._where} "
                f"specified max_batch_size {max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Let requests run in batches, where nothing else is configured."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but {self._where} "
                    "tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._config.setdefault("dynamic_batching", {})

    def add_input(self, input: dict[str, Any]) -> None:  # noqa: A002 - Triton's name
        """Add an input, or fill in what is configured of it."""
        self._add("input", input, ("name", "data_type", "dims"), ("optional",))

    def add_output(self, output: dict[str, Any]) -> None:
        """Add an output, or fill in what is configured of it."""
        self._add("output", output, ("name", "data_type", "dims"), ())

    def _add(
        self, kind: str, given: dict[str, Any], needed: tuple[str, ...], allowed: tuple[str, ...]
    ) -> None:
        for key in given:
            if key not in {*needed, *allowed}:
                raise ValueError(
                    f"{kind} '{given.get('name')}' in {self._where} contains property '{key}'; "
                    f"expected {', '.join((*needed, *allowed))}"
                )
        for key in needed:
            if key not in given:
                raise ValueError(f"{kind} in {self._where} is missing '{key}' property.")
        known = _named(self._config[kind], given["name"])
        if known is None:
            self._config[kind].append(dict(given))
            return
        for key, value in given.items():
            configured = known.get(key)
            if configured not in (None, [], "TYPE_INVALID", value) and not (
                key == "dims" and list(map(int, configured)) == list(map(int, value))
            ):
                raise ValueError(
                    f"model '{self._config['name']}', {kind} '{given['name']}': the model expects "
                    f"{key} {value} but the model configuration specifies {key} {configured}"
                )
            known[key] = value

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        """Set `decoupled`, where it is not configured otherwise."""
        for key in transaction_policy_dict:
            if key != "decoupled":
                raise ValueError(
                    f"model transaction property in {self._where} contains property other than "
                    "'decoupled'."
                )
        policy = self._config.setdefault("model_transaction_policy", {})
        for key, value in transaction_policy_dict.items():
            if policy.get(key, value) != value:
                raise ValueError(
                    f"trying to change decoupled property in {self._where}, which is already set "
                    f"to '{policy[key]}'."
                )
            policy[key] = value

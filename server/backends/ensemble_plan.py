"""What an ensemble's configuration says, checked: which step needs and makes which tensors.

Nothing here runs anything. A step's signature is that of the model that answers while the ensemble
is loaded; a step that is swapped later is looked at again when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import FailedPreconditionError, HeadraceError
from server.models.loaded import ServedModel, TensorSignature
from server.models.pbtxt import wrong
from server.protocol.tensors import shape_text

Find = Callable[[str, str], ServedModel]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `inputs` are (input of its model, tensor of the ensemble), `outputs` likewise."""

    model: str
    version: str  # "": the latest
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`needs` holds, for each step, the tensors that it waits for."""

    steps: tuple[Step, ...]
    needs: tuple[frozenset[str], ...]


def plan_of(
    config: Any,
    inputs: Sequence[TensorSignature],
    outputs: Sequence[TensorSignature],
    find: Find,
) -> Plan:
    """Return the plan of an ensemble with these full shapes. Raises FailedPreconditionError."""
    steps = tuple(
        Step(
            step.model_name,
            "" if step.model_version < 0 else str(step.model_version),
            tuple(sorted(step.input_map.items())),
            tuple(sorted(step.output_map.items())),
        )
        for step in config.ensemble_scheduling.step
    )
    if not steps:
        raise wrong("an ensemble has no step", "at least one", "none")
    known = {spec.name: spec for spec in inputs}
    models: list[ServedModel] = []
    for step in steps:
        model = _model(step, find, config)
        _check_names(step, model)
        for name, tensor in step.outputs:
            if tensor in known:
                raise wrong(f"tensor '{tensor}' is made twice", "one that makes it", step.model)
            known[tensor] = replace(model.outputs[name], name=tensor)
        models.append(model)
    for step, model in zip(steps, models, strict=True):
        for name, tensor in step.inputs:
            _check_same(tensor, model.inputs[name], known.get(tensor), f"step '{step.model}'")
    for spec in outputs:
        _check_same(spec.name, spec, known.get(spec.name), "the ensemble's output")
    needs = tuple(frozenset(tensor for _, tensor in step.inputs) for step in steps)
    plan = Plan(steps, needs)
    _check_runs(plan, [spec.name for spec in inputs])
    return plan


def chain_of(plan: Plan, inputs: Sequence[str]) -> tuple[int, ...] | None:
    """Return the steps in their order, where each can begin only when the one before has ended;
    None where two could run beside each other."""
    rounds = _rounds(plan, inputs)
    if len(rounds) < len(plan.steps):
        return None
    return tuple(index for (index,) in rounds)


def _model(step: Step, find: Find, config: Any) -> ServedModel:
    if step.model == config.name:
        raise wrong("an ensemble runs itself", "other models", step.model)
    try:
        model = find(step.model, step.version)
    except HeadraceError as error:
        raise FailedPreconditionError(
            f"ensemble '{config.name}' depends on '{step.model}', which does not serve: "
            f"{error.message}"
        ) from None
    if model.decoupled:
        raise wrong(f"step '{step.model}' is decoupled", "one response a request", "decoupled")
    if 0 < model.max_batch_size < config.max_batch_size:
        raise wrong(
            f"step '{step.model}' takes smaller batches than the ensemble",
            f"max_batch_size {model.max_batch_size} at most",
            config.max_batch_size,
        )
    return model


def _check_names(step: Step, model: ServedModel) -> None:
    for kind, mapped, has in (
        ("input", step.inputs, model.inputs),
        ("output", step.outputs, model.outputs),
    ):
        for name, tensor in mapped:
            if name not in has:
                raise wrong(f"model '{step.model}' has no {kind} '{name}'", ", ".join(has), name)
            if not tensor:
                raise wrong(
                    f"{kind} '{name}' of step '{step.model}' is mapped to nothing", "a name", ""
                )
    missing = [
        name for name in model.inputs
        if name not in dict(step.inputs) and name not in model.optional
    ]  # fmt: skip
    if missing:
        raise wrong(
            f"an input of step '{step.model}' is not mapped", f"input '{missing[0]}'", "none"
        )
    if not step.outputs:
        raise wrong(f"step '{step.model}' maps no output", "at least one", "none")


def _check_same(
    tensor: str, wanted: TensorSignature, made: TensorSignature | None, where: str
) -> None:
    if made is None:
        raise wrong(
            f"{where} needs tensor '{tensor}', which nothing makes", "a step's output", "none"
        )
    if made.datatype != wanted.datatype:
        raise wrong(
            f"data_type of tensor '{tensor}' differs for {where}", wanted.datatype, made.datatype
        )
    if len(made.shape) != len(wanted.shape) or any(
        -1 not in (size, other) and size != other
        for size, other in zip(made.shape, wanted.shape, strict=True)
    ):
        raise wrong(
            f"shape of tensor '{tensor}' differs for {where}",
            shape_text(wanted.shape),
            shape_text(made.shape),
        )


def _check_runs(plan: Plan, inputs: Sequence[str]) -> None:
    """Refuse steps that wait for each other."""
    run = {index for ready in _rounds(plan, inputs) for index in ready}
    left = [step.model for index, step in enumerate(plan.steps) if index not in run]
    if left:
        names = ", ".join(f"'{model}'" for model in left)
        raise wrong("steps wait for each other", "no circle", names)


def _rounds(plan: Plan, inputs: Sequence[str]) -> list[list[int]]:
    """Return which steps can begin at first, which when those have ended, and so on. Those that
    wait for each other are in none."""
    there = set(inputs)
    left = list(range(len(plan.steps)))
    rounds: list[list[int]] = []
    while ready := [index for index in left if plan.needs[index] <= there]:
        for index in ready:
            there |= {tensor for _, tensor in plan.steps[index].outputs}
        left = [index for index in left if index not in ready]
        rounds.append(ready)
    return rounds

"""The steps of one round at one participant: DP-SGD exactly as the plan says, or plain SGD where the plan claims no privacy.

The number of steps is fixed by the plan and never depends on the data. Each step draws its own Poisson sample at exactly the
plan's rate (Opacus' own loader would round the rate to 1 / number of batches) and divides by the expected batch size, so that
what accounting assumes is what happens. The result is the change of the trained weights; nothing else leaves here.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from torch import nn

from covey_agent.workers.errors import WorkerError
from covey_agent.workers.training.noise import draw_sample
from covey_agent.workers.training.optimizer import SystemNoiseOptimizer, trained_parameters
from covey_agent.workers.training.process import return_memory
from covey_agent.workers.training.task_code import Task
from covey_agent.workers.training.weights import Weights
from covey_contract.messages import PrivacyPlan, Scalar

RECORD_LEVEL = "record"
NO_PRIVACY = "none"
_PART = 64  # records whose gradients are held at once


class TrainingError(WorkerError):
    """A round cannot be trained as ordered."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the task's owner may choose freely: it has no influence on the guarantee."""

    learning_rate: float
    momentum: float = 0.0


def read_settings(hyperparameters: Mapping[str, Scalar]) -> Settings:
    """The settings among a run's hyper-parameters. Raises TrainingError."""
    unknown = sorted(set(hyperparameters) - {"learning_rate", "momentum"})
    rate, momentum = hyperparameters.get("learning_rate", 0.1), hyperparameters.get("momentum", 0.0)
    if unknown or isinstance(rate, str) or isinstance(momentum, str) or not 0 < rate < 1e6 or not 0 <= momentum < 1:
        raise TrainingError(f"expected learning_rate > 0 and 0 <= momentum < 1 and nothing else, got {dict(hyperparameters)}")
    return Settings(learning_rate=float(rate), momentum=float(momentum))


def train_round(task: Task, weights: Weights, *, x: Any, y: Any, plan: PrivacyPlan, settings: Settings) -> Weights:
    """Train from `weights` for the plan's steps; returns the change of each trained parameter. Raises TrainingError."""
    if len(x) == 0:
        raise TrainingError("there are no records to train on")
    model = task.build_model()
    load_weights(model, weights)
    optimizer = torch.optim.SGD(trained_parameters(model), lr=settings.learning_rate, momentum=settings.momentum)
    records, labels = torch.as_tensor(x), torch.as_tensor(y)
    with _one_thread():
        if plan.level == RECORD_LEVEL:
            _check_private(plan, len(x))
            _private_steps(task, model, optimizer, records, labels, plan)
        elif plan.level == NO_PRIVACY:
            _plain_steps(task, model, optimizer, records, labels, plan)
        else:
            raise TrainingError(f"expected the privacy level {RECORD_LEVEL} or {NO_PRIVACY}, got {plan.level!r}")
    change = {name: value - weights[name] for name, value in trained_weights(model).items()}
    if not all(np.isfinite(part).all() for part in change.values()):
        raise TrainingError("the weights are no longer finite; the learning rate is too high")
    return change


def bind_plan(plan: PrivacyPlan, hyperparameters: Mapping[str, Scalar]) -> Callable[[Task, Weights, Any, Any], Weights]:
    """`train_round` with what the signed invitation fixes for the whole run. Raises TrainingError for bad hyper-parameters."""
    settings = read_settings(hyperparameters)
    return lambda task, weights, x, y: train_round(task, weights, x=x, y=y, plan=plan, settings=settings)


def trained_weights(model: nn.Module) -> Weights:
    """The parameters that rounds change, by name."""
    return {name: p.detach().numpy().astype(np.float32, copy=True) for name, p in model.named_parameters() if p.requires_grad}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Put `weights` in place of the trained parameters. Raises TrainingError if names or shapes differ."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys() or any(tuple(own[name].shape) != weights[name].shape for name in own):
        raise TrainingError(f"expected weights for {sorted(own)} in their shapes, got {sorted(weights)}")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))


def _check_private(plan: PrivacyPlan, size: int) -> None:
    if not (plan.noise_multiplier > 0 and plan.clipping_norm > 0 and 0 < plan.sample_rate <= 1 and plan.steps > 0):
        raise TrainingError(f"the plan gives no privacy: {plan}")
    if plan.delta * size > 1:
        raise TrainingError(f"delta {plan.delta} must not be above 1/n, and this share has {size} records")


def _private_steps(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, plan: PrivacyPlan
) -> None:
    try:
        wrapped = GradSampleModule(model.train())
    except NotImplementedError as exc:  # a layer that mixes records, such as BatchNorm
        raise TrainingError(f"the model cannot be trained with privacy per record: {exc}") from exc
    private = SystemNoiseOptimizer(
        optimizer,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clipping_norm,
        expected_batch_size=plan.sample_rate * len(x),
        loss_reduction="mean",
    )
    with warnings.catch_warnings():
        # Opacus hooks layers whose input needs no gradient, as the first trained one after fixed ones; PyTorch remarks on it.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for _ in range(plan.steps):
            private.zero_grad()
            rows = torch.from_numpy(draw_sample(len(x), rate=plan.sample_rate))
            for part in torch.split(rows, _PART):
                task.compute_loss(wrapped, x[part], y[part]).backward()
                private.accumulate()
            private.step()
    private.zero_grad()
    wrapped.to_standard_module()  # takes the hooks out, which hold the last batch in a cycle
    return_memory()


def _plain_steps(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, plan: PrivacyPlan
) -> None:
    model.train()
    for _ in range(plan.steps):
        rows = torch.from_numpy(draw_sample(len(x), rate=plan.sample_rate or 1.0))
        if len(rows) == 0:
            continue
        optimizer.zero_grad()
        task.compute_loss(model, x[rows], y[rows]).backward()
        optimizer.step()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A trainer shares its machine with what it was bought for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

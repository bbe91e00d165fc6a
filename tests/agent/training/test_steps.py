"""DP-SGD does what accounting assumes: clipping per record, the plan's noise, its number of steps, expected batch size."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from covey_agent.workers.training.task_code import Task
from covey_contract.messages import PrivacyPlan

pytestmark = pytest.mark.runtime
torch = pytest.importorskip("torch")
steps = pytest.importorskip("covey_agent.workers.training.steps")

FEATURES, CLASSES = 40, 5


def plan(**changes: Any) -> PrivacyPlan:
    usual = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=1.0, steps=1, delta=1e-4)
    return msgspec.structs.replace(usual, **changes)


def make_task(build: Callable[[], Any] | None = None) -> Task:
    def loss(model: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), y)

    return Task(
        digest="", build_model=build or (lambda: torch.nn.Linear(FEATURES, CLASSES)), load_data=lambda _path: (0, 0), compute_loss=loss
    )


def data(size: int = 150) -> tuple[Any, Any]:
    chance = np.random.default_rng(3)
    return chance.normal(size=(size, FEATURES)).astype(np.float32), chance.integers(0, CLASSES, size)


def zeros() -> dict[str, Any]:
    return {"weight": np.zeros((CLASSES, FEATURES), np.float32), "bias": np.zeros(CLASSES, np.float32)}


def train(task: Task, *, x: Any, y: Any, **changes: Any) -> Any:
    rate = changes.pop("learning_rate", 1.0)
    return steps.train_round(task, zeros(), x=x, y=y, plan=plan(**changes), settings=steps.Settings(rate))


def clipped_mean(x: Any, y: Any, bound: float) -> Any:
    """By hand: softmax regression's gradient of each record is (p - onehot(y)) outer (x, 1)."""
    error = np.full((len(x), CLASSES), 1 / CLASSES) - np.eye(CLASSES)[y]
    extended = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    norms = np.linalg.norm(error, axis=1) * np.linalg.norm(extended, axis=1)
    return np.einsum("n,nc,nf->cf", np.minimum(1, bound / norms), error, extended) / len(x)


@pytest.mark.parametrize("bound", [0.5, 3.0, 1000.0])
def test_each_records_gradient_is_clipped_on_its_own(bound: float) -> None:
    x, y = data()
    change = train(make_task(), x=x, y=y, clipping_norm=bound, noise_multiplier=1e-9)
    ours = -np.concatenate([change["weight"], change["bias"][:, None]], axis=1)
    np.testing.assert_allclose(ours, clipped_mean(x, y, bound), atol=2e-6)


def test_noise_has_the_plans_size_also_in_an_empty_sample() -> None:
    x, y = data(20)
    found = []
    for _ in range(60):  # at this rate a sample is empty nearly always, and then the change is noise alone
        change = train(make_task(), x=x, y=y, sample_rate=1e-9, noise_multiplier=2.0, clipping_norm=3.0)
        found.append(np.concatenate([part.ravel() for part in change.values()]))
    measured = float(np.std(np.concatenate(found))) * (1e-9 * len(x))
    count = 60 * CLASSES * (FEATURES + 1)
    assert measured == pytest.approx(2.0 * 3.0, rel=6.5 / np.sqrt(2 * count))


def test_the_number_of_steps_is_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    real = steps.draw_sample

    def counted(size: int, *, rate: float) -> Any:
        drawn.append(rate)
        return real(size, rate=rate)

    monkeypatch.setattr(steps, "draw_sample", counted)
    train(make_task(), x=data()[0], y=data()[1], steps=7, sample_rate=0.3)
    assert drawn == [0.3] * 7


def test_only_trained_parameters_travel() -> None:
    def build() -> Any:
        model = torch.nn.Linear(FEATURES, CLASSES)
        model.bias.requires_grad_(False)
        return model

    weights = {"weight": np.zeros((CLASSES, FEATURES), np.float32)}
    x, y = data()
    change = steps.train_round(make_task(build), weights, x=x, y=y, plan=plan(), settings=steps.Settings(1.0))
    assert change.keys() == {"weight"}


def test_layers_that_mix_records_are_refused() -> None:
    def build() -> Any:
        return torch.nn.Sequential(torch.nn.BatchNorm1d(FEATURES), torch.nn.Linear(FEATURES, CLASSES))

    x, y = data()
    weights = steps.trained_weights(build())
    with pytest.raises(steps.TrainingError, match="BatchNorm"):
        steps.train_round(make_task(build), weights, x=x, y=y, plan=plan(), settings=steps.Settings(1.0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"delta": 0.01}, "1/n"),
        ({"noise_multiplier": 0.0}, "no privacy"),
        ({"clipping_norm": 0.0}, "no privacy"),
        ({"sample_rate": 0.0}, "no privacy"),
        ({"steps": 0}, "no privacy"),
        ({"level": "mostly"}, "privacy level"),
        ({"learning_rate": 1e20, "clipping_norm": 1e30}, "finite"),
    ],
)
def test_what_cannot_be_trained_as_ordered_is_refused(changes: dict[str, Any], reason: str) -> None:
    x, y = data()
    with pytest.raises(steps.TrainingError, match=reason):
        train(make_task(), x=x, y=y, **changes)


def test_weights_of_another_model_are_refused() -> None:
    x, y = data()
    with pytest.raises(steps.TrainingError, match="expected weights"):
        steps.train_round(make_task(), {"weight": zeros()["weight"]}, x=x, y=y, plan=plan(), settings=steps.Settings(1.0))


def test_an_empty_share_is_refused() -> None:
    with pytest.raises(steps.TrainingError, match="no records"):
        train(make_task(), x=data()[0][:0], y=data()[1][:0])


@pytest.mark.parametrize("bad", [{"learning_rate": "fast"}, {"learning_rate": 0}, {"momentum": 1.0}, {"epsilon": 3}])
def test_unknown_or_impossible_hyperparameters_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(steps.TrainingError, match="learning_rate"):
        steps.read_settings(bad)


def test_without_privacy_plain_sgd_learns() -> None:
    x, _ = data(300)
    y = np.argmax(x[:, :CLASSES], axis=1)
    change = train(make_task(), x=x, y=y, level="none", noise_multiplier=0.0, clipping_norm=0.0, delta=0.0, steps=100)
    logits = x @ change["weight"].T + change["bias"]
    assert (np.argmax(logits, axis=1) == y).mean() > 0.9

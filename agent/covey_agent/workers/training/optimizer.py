"""Opacus' DP-SGD step with noise from the operating system's generator.

Opacus clips and adds up per-record gradients; only the source of noise is replaced. Its own secure mode needs a package that
does not exist for current PyTorch, and its ordinary mode draws from PyTorch's Mersenne Twister.
"""

from collections.abc import Callable

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from covey_agent.workers.training.noise import draw_noise


class SystemNoiseOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus publishes no types
    """DP-SGD: clip each record's gradient, add up, add noise of standard deviation z * C, divide by the expected batch size."""

    def accumulate(self) -> None:
        """Clip the gradients of the part of a sample that was just passed back, add them up and forget them, so that memory stays small."""
        self.clip_and_accumulate()
        for p in self.params:
            p.grad_sample = None

    def add_noise(self) -> None:
        """Set `grad` to the clipped sum plus noise, added in double precision: rounding comes after the noise, and so reveals nothing."""
        for p in self.params:
            noise = make_noise(p.summed_grad, std=self.noise_multiplier * self.max_grad_norm)
            p.grad = (p.summed_grad.double() + noise).to(p.dtype)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool | None:
        """Everything before the wrapped optimizer's own step. An empty sample is no exception: the step is noise alone then."""
        del closure
        for p in self.params:
            if p.summed_grad is None:
                p.summed_grad = torch.zeros_like(p)
        self.add_noise()
        for p in self.params:
            p.grad /= self.expected_batch_size
        return True


def make_noise(like: Tensor, *, std: float) -> Tensor:
    """float64 in the shape of `like`: independent normal noise."""
    return torch.from_numpy(draw_noise(like.numel(), std=std)).reshape(like.shape)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a round changes."""
    return [p for p in model.parameters() if p.requires_grad]

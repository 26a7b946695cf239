"""Learning rates that change from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...engine import Tensor
from ...engine.grad_mode import mode
from ...engine.recorder import refuse
from .optimizer import Optimizer


class LRScheduler:
    """Base of the schedules: `step()` after each epoch sets the learning rate of every group to `get_lr()`.

    last_epoch: the epoch to go on from; then the groups must hold "initial_lr", as a loaded optimizer's do.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an Optimizer, got {type(optimizer).__name__}")
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group["initial_lr"] = _copied(group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(f'{type(self).__name__}: group {i} has no "initial_lr" to go on from epoch {last_epoch}')
        self.optimizer = optimizer
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.step()

    def get_lr(self) -> list[float]:
        """The learning rates of the groups for `last_epoch`, from those of the epoch before."""
        raise NotImplementedError(f"{type(self).__name__}.get_lr")

    def get_last_lr(self) -> list[float]:
        """The learning rates that the last step set."""
        return self._last_lr

    def step(self) -> None:
        """Go on to the next epoch."""
        if mode.recorder is not None and mode.recorder.capturing:
            self._record()
        self._go_on()

    def _go_on(self) -> None:
        self.last_epoch += 1
        self._last_lr = [_copied(lr) for lr in self.get_lr()]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):  # where a captured graph finds it
                group["lr"].detach().copy_(lr)
            else:
                group["lr"] = lr

    def _record(self) -> None:
        """Have a captured step go on to the next epoch at each replay."""
        groups = self.optimizer.param_groups
        if any(isinstance(group["lr"], Tensor) for group in groups):
            refuse("step a schedule of a learning rate that is a tensor")
        fields, lrs = dict(self.__dict__), [group["lr"] for group in groups]

        def undo() -> None:
            self.__dict__.update(fields)
            for group, lr in zip(groups, lrs, strict=True):
                group["lr"] = lr

        mode.recorder.on_host(self._go_on, undo)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {name: value for name, value in self.__dict__.items() if name != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.__dict__.update(state_dict)


def _copied(lr: Any) -> Any:
    return lr.detach().clone() if isinstance(lr, Tensor) else lr


class StepLR(LRScheduler):
    """Multiplies the learning rates by `gamma` every `step_size` epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        if isinstance(step_size, bool) or not hasattr(step_size, "__index__") or step_size < 1:
            raise ValueError(f"StepLR: step_size must be a positive integer, got {step_size!r}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        change = self.gamma if self.last_epoch and self.last_epoch % self.step_size == 0 else 1
        return [group["lr"] * change for group in self.optimizer.param_groups]

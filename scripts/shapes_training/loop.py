"""The training loop that all models share: one CUDA graph a step, weight averaging, checkpoints."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_AVERAGE_EVERY = 10
_WARM_UP_UPDATES = 4  # eager updates before the capture, on CUDA


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: Updates in all.
        learning_rate: Peak, after `warm_up` steps; then a cosine down to a twentieth.
        seconds: Wall-clock time after which to stop even if steps are left; the learning rate
            follows whichever of the two limits comes nearer.
        warm_up: Steps of linear increase.
        average: Decay of the weight average per ten steps.
        seed: Of the batches and the noise.
        device: "cuda" or "cpu".
    """

    steps: int
    learning_rate: float
    device: str
    seconds: float = math.inf
    warm_up: int = 200
    average: float = 0.99
    seed: int = 0

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of one step, `seconds` after the start."""
        rise = min(1.0, (step + 1) / self.warm_up)
        done = min(1.0, max(step / self.steps, seconds / self.seconds))
        return self.learning_rate * rise * (0.525 + 0.475 * math.cos(math.pi * done))


class Trainer:
    """Minimises a loss over a module's parameters.

    Attributes:
        average: Copy of the module with averaged weights: what is worth saving.
        step: Updates done.
    """

    def __init__(
        self, module: nn.Module, loss: Callable[[], Tensor], plan: Plan, checkpoint: Path
    ) -> None:
        """Starts fresh, or from the checkpoint if that file exists.

        Args:
            module: What to train, on `plan.device`.
            loss: Draws its own batch and returns a scalar; must read nothing back to the host.
            plan: See `Plan`.
            checkpoint: File to resume from and to write to.
        """
        self.module, self.loss, self.plan, self.checkpoint = module, loss, plan, checkpoint
        self.average = copy.deepcopy(module).eval().requires_grad_(False)
        self.step = 0
        self.on_cuda = plan.device.startswith("cuda")
        # A learning rate in a tensor can change after the capture.
        self.rate = torch.tensor(plan.rate(0), device=plan.device)
        self.value = torch.zeros((), device=plan.device)
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=self.rate,
            weight_decay=0.01,
            capturable=self.on_cuda,
            fused=self.on_cuda,
            foreach=None if self.on_cuda else False,
        )
        if checkpoint.exists():
            self._load()

    def run(self, after: Callable[[int], bool] | None = None, every: int = 500) -> None:
        """Trains to the end of the plan and writes the checkpoint.

        Args:
            after: Called with the step now and then; training stops when it says True.
            every: Steps between two reports, and between two such calls.
        """
        started, done = time.time(), False
        torch.manual_seed(self.plan.seed + self.step)
        update = self._capture() if self.on_cuda else self._update
        while self.step < self.plan.steps and not done:
            seconds = time.time() - started
            self.rate.fill_(self.plan.rate(self.step, seconds))
            update()
            self.step += 1
            if self.step % _AVERAGE_EVERY == 0:
                self._blend()
            if self.step % every == 0 or self.step == self.plan.steps:
                print(
                    f"step {self.step} loss {self.value.item():.5f} seconds {seconds:.1f}",
                    flush=True,
                )
                done = after is not None and after(self.step)
            if self.on_cuda and self.step % _AVERAGE_EVERY == 0:
                torch.cuda.synchronize()  # or the clock would only see the queueing
            if seconds > self.plan.seconds:
                print(f"stopped at step {self.step}: out of time", flush=True)
                done = True
        self._save()

    def _update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.on_cuda, cache_enabled=False):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.value.copy_(loss.detach())

    def _capture(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_UPDATES):
                self._update()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update()
        return graph.replay

    def _blend(self) -> None:
        # Early on the average follows faster, so that it forgets the random start.
        count = self.step // _AVERAGE_EVERY
        decay = min(self.plan.average, (1 + count) / (10 + count))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.module.parameters()), 1 - decay
            )

    def _save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.plan.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.step = state["step"]
        print(f"resumed at step {self.step}", flush=True)

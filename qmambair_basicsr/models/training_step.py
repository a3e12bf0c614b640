"""One training step of the models: forward, backward, what stops it, and the update."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import data_order, non_finite
from .garbage import collected_later
from .random_stream import seeded
from .resuming import ResumableTraining
from .scheduled_loss import ScheduledLoss, active
from .step_graph import StepGraph
from .step_options import StepOptions


class SteppedTraining(ResumableTraining):
    """A model whose training steps repeat, stop at NaN with its place, and can be recorded as CUDA graphs."""

    step_options: StepOptions
    step_graph: StepGraph | None

    def prepare_steps(self) -> None:
        """Prepares the methods below; called when a model is built."""
        self.step_options = StepOptions.from_options(self.opt) if self.is_train else StepOptions()
        self.renew_scaler()
        self.step_graph = None
        self._losses: OrderedDict[str, Tensor] | None = None

    def renew_scaler(self, state: Mapping | None = None) -> None:
        """A new scaler of losses, which goes on from a state."""
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.step_options.amp == "fp16")
        if state:
            self.scaler.load_state_dict(dict(state))

    def feed_data(self, data: Mapping[str, Tensor]) -> None:
        """Take the batch ``lq`` and, where there is one, ``gt``."""
        super().feed_data({**data, **{name: self._moved(data[name]) for name in ("lq", "gt") if name in data}})

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the run's device; from pinned memory, which a copy does not wait for the GPU's work to read."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        """One training step, drawing from the random stream of (seed, rank, iteration).

        Raises:
            non_finite.NonFiniteError: the loss or a gradient is NaN or infinite; the weights are as before the step.
                With ``train: cuda_graph`` raised up to 10 iterations later, and the weights are as before the one it names.
        """
        self._iteration, self._state = current_iter, None
        self.begin_step()
        if self.step_options.cuda_graph and self.step_graph is None:
            self.step_graph = StepGraph(self)
        finite = True
        with collected_later():
            if self.step_graph is not None:
                self.step_graph.step()
            else:
                finite = self.eager_step()
        self.end_step()
        if finite and self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def begin_step(self) -> None:
        """Called in front of an iteration: what follows its number is set."""
        total = int(self.opt["train"]["total_iter"])
        for module in self.step_modules().values():
            if isinstance(module, ScheduledLoss):
                module.begin(self._iteration, total)

    def end_step(self) -> None:
        """Called when the weights have been updated, before the average moves."""

    def eager_step(self) -> bool:
        """The step on the current batch, one kernel after the other.

        Returns:
            False where float16 overflowed and the update was left out.

        Raises:
            non_finite.NonFiniteError: see :meth:`optimize_parameters`.
        """
        self.optimizer_g.zero_grad()
        with self.step_randomness():
            losses = self.accumulated_gradients()
        self.scaler.unscale_(self.optimizer_g)
        # a gradient norm costs one pass over the gradients and keeps NaN out of the weights and the optimizer
        finite = math.isfinite(non_finite.gradient_norm(self.net_g.parameters()))
        if not finite and (not self.scaler.is_enabled() or self.scaler.get_scale() <= 1):
            raise self.non_finite_error(losses)
        self.clip_gradients()
        self.scaler.step(self.optimizer_g)  # in float16 not where a gradient overflowed: the next scale is smaller
        self.scaler.update()
        self._losses, self.log_dict = None, self.reduce_loss_dict(losses)
        return finite

    def clip_gradients(self) -> None:
        """Scale the gradients down to the norm ``train: grad_clip``, where that is set."""
        if "grad_clip" in self.opt["train"]:
            nn.utils.clip_grad_norm_(self.net_g.parameters(), self.opt["train"]["grad_clip"])

    def accumulated_gradients(self, check: bool = True) -> OrderedDict[str, Tensor]:
        """Forward and backward of the current batch, part by part; the losses, means over the parts.

        Args:
            check: look at every loss before its backward pass, which waits for the device.

        Raises:
            non_finite.NonFiniteError: a loss is NaN or infinite.
        """
        parts, batch = self.step_options.accumulate, self.batch()
        sums: OrderedDict[str, Tensor] = OrderedDict()
        for part in range(parts):
            self.put_batch({name: tensor.chunk(parts)[part] for name, tensor in batch.items()})
            last = part == parts - 1
            shared = isinstance(self.net_g, DistributedDataParallel) and not last
            with self.net_g.no_sync() if shared else contextlib.nullcontext():
                with self.autocast():
                    losses = self.compute_losses()
                if not losses:
                    raise ValueError(
                        f"train: every loss has the weight 0 in iteration {self._iteration}; see schedule:"
                    )
                total = sum(losses.values()) / parts
                if check and not math.isfinite(total.item()):
                    raise self.non_finite_error(losses)
                self.scaler.scale(total).backward()
            for name, value in losses.items():
                value = value.detach() / parts
                sums[name] = sums[name] + value if name in sums else value
        self.put_batch(batch)
        return sums

    def batch(self) -> dict[str, Tensor]:
        """The current batch."""
        return {name: getattr(self, name) for name in ("lq", "gt") if isinstance(getattr(self, name, None), Tensor)}

    def put_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Make these tensors the current batch."""
        for name, tensor in batch.items():
            setattr(self, name, tensor)

    def step_modules(self) -> dict[str, nn.Module]:
        """The modules that a step runs, by attribute: the network, losses, a teacher."""
        return {k: v for k, v in vars(self).items() if isinstance(v, nn.Module) and k != "net_g_ema"}

    def watched_step(self) -> bool:
        """Whether the current step does more than others, which a recording of one could not."""
        return False

    def check_steps(self) -> None:
        """Wait for the steps so far.

        Raises:
            non_finite.NonFiniteError: one of them met NaN or infinity.
        """
        if self.step_graph is not None:
            self.step_graph.check()

    def set_losses(self, losses: OrderedDict[str, Tensor]) -> None:
        """The losses of the last step, which stay on the device until somebody asks for them."""
        self._losses = losses

    def get_current_log(self) -> OrderedDict[str, float]:
        """The losses of the last step."""
        if self._losses is not None:
            self.check_steps()
            self._losses, self.log_dict = None, self.reduce_loss_dict(self._losses)
        return self.log_dict

    def autocast(self) -> torch.autocast:
        """What a training step's forward runs in: products in ``train: amp``."""
        options = self.step_options
        return torch.autocast(self.device.type, options.dtype, enabled=options.amp is not None)

    def step_key(self) -> tuple[int, ...]:
        """Random key of the current training step."""
        return (data_order.STEP_STREAM, self.seed, self.rank, self._iteration)

    @contextlib.contextmanager
    def step_randomness(self) -> Iterator[None]:
        """Inside, random draws are those of the current training step, however often it is entered."""
        with seeded(*self.step_key()):
            yield

    def replay_forward(self) -> None:
        """Run the network on the current batch as the current step did, without gradients."""
        with torch.no_grad(), self.step_randomness(), self.autocast():
            self.get_bare_model(self.net_g)(self.lq)

    def compute_losses(self) -> OrderedDict[str, Tensor]:
        """Run the network on the current batch; weighted losses by log name (``l_...``), which are summed."""
        self.output = self.net_g(self.lq).to(self.lq.dtype)
        losses = OrderedDict()
        if active(self.cri_pix):
            losses["l_pix"] = self.cri_pix(self.output, self.gt)
        if self.cri_perceptual is not None:
            content, style = self.cri_perceptual(self.output, self.gt)
            losses.update({k: v for k, v in (("l_percep", content), ("l_style", style)) if v is not None})
        return losses

    def non_finite_error(self, losses: dict[str, Tensor]) -> non_finite.NonFiniteError:
        """The error that says where the current step went wrong and which checkpoint is the last good one."""
        data = {"lq": self.lq, "gt": getattr(self, "gt", None)}
        where = non_finite.locate(self.get_bare_model(self.net_g), data, self.replay_forward)
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        return non_finite.NonFiniteError(
            f"training stopped at iteration {self._iteration} ({values}): {where}. "
            f"{non_finite.last_checkpoint(self.opt['path'].get('models'))}"
        )

    def model_ema(self, decay: float = 0.999) -> None:
        """Move the average towards the network by ``1 - decay``; buffers (calibration state) are copied."""
        net = self.get_bare_model(self.net_g)
        with torch.no_grad():
            averages, values = (list(n.parameters()) for n in (self.net_g_ema, net))
            torch._foreach_mul_(averages, decay)
            torch._foreach_add_(averages, values, alpha=1 - decay)
            buffers: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
            for average, value in zip(self.net_g_ema.buffers(), net.buffers(), strict=True):
                pair = buffers.setdefault(value.dtype, ([], []))
                pair[0].append(average)
                pair[1].append(value)
            for to, source in buffers.values():
                torch._foreach_copy_(to, source)

"""What an update runs on: one process, DDP or FSDP2, by accelerate's configuration and launcher.

This is the only file that knows of processes. A loss is a sum over micro-batches and processes, so every average is
divided by a global count. Every collective call is made by all processes alike, whatever the data.

DDP is accelerate's. FSDP2 is torch's `fully_shard` on the whole method as one unit, with the settings of accelerate's
plugin: a latent loop reads each weight k + 2 times an update, without calling the layers' own `forward`, so parameters
are gathered once before it and freed once after it. accelerate would shard layer by layer, and does not support FSDP on
a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    broadcast_object_list,
    gather_object,
)
from accelerate.utils import parse_flag_from_env as flag
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kernels.errors import UserError
from latent.methods.base import Method
from train.process import needs_cpu

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
# how gloo and NCCL report that another process has ended
PEER_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_load_state_dict_post_hooks")
SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU", "FSDP")


class Engine:
    """This process among all: `rank` of `world`. `leads`: whether it is the one that writes files and prints."""

    module: nn.Module
    """The method that is trained, wrapped where DDP does: `module(verb, *args)` is that verb through `Method.forward`,
    so that gradients are shared. One `backward` must follow each call."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.leads, self.device = accelerator.is_main_process, accelerator.device
        self.plugin: FullyShardedDataParallelPlugin | None = None  # only under FSDP2
        self.sharded: FSDPModule | None = None  # the method, where FSDP2 has sharded it
        self.unsharded: tuple[type[Method], list] | None = None  # the method's class and hooks before FSDP2
        self.used: set[str] = set()  # under FSDP2, parameters that have a gradient on this process in this update
        if self.world > 1 and flag("ACCELERATE_USE_FSDP"):
            self.plugin = FullyShardedDataParallelPlugin()

    @classmethod
    def start(cls, device: str = "auto", **trackers) -> Engine:
        """The engine that the launcher's environment asks for. Raises UserError for an unsupported configuration."""
        engine = cls(Accelerator(cpu=needs_cpu(device), **trackers))
        engine.check()
        return engine

    def check(self) -> None:
        """Raise UserError, naming the remedy, for a setting of accelerate that changes a run's results.

        The run's id would not show it. Such settings belong into the run's config, or are not supported.
        """
        state = self.accelerator.state
        kind = DistributedType(state.distributed_type).value
        if kind not in SUPPORTED or flag("ACCELERATE_USE_DEEPSPEED") or flag("ACCELERATE_USE_MEGATRON_LM"):
            raise UserError(f"accelerate's configuration asks for {kind}: there are one process, DDP and FSDP2")
        if state.mixed_precision != "no":
            raise UserError(
                f"accelerate's mixed_precision is {state.mixed_precision}: set it to no, and give --model.bf16 True"
            )
        if self.accelerator.gradient_accumulation_steps != 1:
            raise UserError("accelerate's gradient_accumulation_steps is not 1: give --train.micro-batch instead")
        if state.dynamo_plugin.backend != DynamoBackend.NO:
            raise UserError("accelerate's configuration asks for torch.compile: set dynamo_backend to no")
        if self.plugin is not None and self.plugin.fsdp_version != 2:
            raise UserError("accelerate's configuration asks for FSDP1: set fsdp_version to 2 (FSDP_VERSION=2)")
        # torch.__version__ compares as a version. From 2.13 on a process may have no gradient for some parameters.
        if self.plugin is not None and torch.__version__ < "2.13":
            raise UserError(f"FSDP2 needs torch 2.13 or newer, this is {torch.__version__}")

    # The method

    def prepare(self, method: Method) -> None:
        """Let the processes share `method`. Make its optimizer afterwards: sharding replaces the parameters."""
        self.module = method
        if self.world == 1:
            return
        # what the host decides by is on the CPU, where a GPU's backend does not reach, and the same on all processes
        ours = [name for name, buffer in method.named_buffers() if buffer.device.type != self.device.type]
        if self.plugin is None:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, ours)
            # a process whose rows have no chain has no gradient for the step decoder
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
            self.module = self.accelerator.prepare(method)
            return
        hooks = [getattr(module, name) for module in method.modules() for name in HOOKS]
        self.unsharded = type(method), [(each, dict(each)) for each in hooks]
        for name, tensor in method.state_dict().items():  # as DDP does: all processes start from the same weights
            if name not in ours:
                torch.distributed.broadcast(tensor, 0)
        self.sharded = self._shard(method, self.plugin)
        self.sharded.set_reduce_scatter_unused_params(True)
        with self.whole():
            for name, p in method.named_parameters():
                if p.requires_grad:
                    p.register_post_accumulate_grad_hook(lambda p, name=name: self.used.add(name))

    def _shard(self, method: Method, plugin: FullyShardedDataParallelPlugin) -> FSDPModule:
        """Shard a method in place; torch makes it an instance of FSDPModule as well."""
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(self.device.type, (self.world,))
        policy = plugin.cpu_offload
        offload = policy if isinstance(policy, fsdp.OffloadPolicy) else fsdp.OffloadPolicy()
        return fsdp.fully_shard(method, mesh=mesh, reshard_after_forward=False, offload_policy=offload)

    def frozen(self, method: Method) -> Method:
        """A copy of a method that is not prepared yet, as a reference policy: without gradient, in evaluation mode."""
        kept = copy.deepcopy(method).requires_grad_(False).eval()
        if self.plugin is not None:
            self._shard(kept, self.plugin)
        return kept

    @contextmanager
    def whole(self, method: Method | None = None) -> Iterator[None]:
        """Inside, this process holds all parameters, for calls that bypass `module`. All processes must enter it.

        `method`: a frozen copy whose parameters they are; None: the method that is trained.
        """
        sharded = self.sharded
        if self.plugin is not None and method is not None:
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(method, FSDPModule)  # as `frozen` made it
            sharded = method
        if sharded is None:
            yield
            return
        sharded.unshard()
        try:
            yield
        finally:
            sharded.reshard()

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Wraps a micro-batch's forward and backward: gradients are summed over processes in the last one only."""
        if self.sharded is not None:
            self.sharded.set_requires_gradient_sync(last)
            self.sharded.set_reshard_after_backward(last)  # parameters are gathered once an update
        elif self.world > 1 and not last:
            return self.accelerator.no_sync(self.module)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this micro-batch's part of the loss to those that are there."""
        # DDP and FSDP2 average gradients over processes; parts that are divided by global counts must be summed
        (loss * self.world if self.world > 1 else loss).backward()

    def clip(self, optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
        """Clip the gradients to a norm. Returns the norm before clipping, over all shards.

        A parameter that no process has used keeps no gradient: AdamW would decay one whose gradient is zero.
        """
        if self.plugin is not None:
            named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
            users = self.sum([float(n in self.used) for n, _ in named])
            self.used.clear()
            for (_, p), n in zip(named, users):
                p.grad = p.grad if n else None
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        return local(torch.nn.utils.clip_grad_norm_(params, limit))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of an optimizer; the gradients are dropped."""
        optimizer.step()
        optimizer.zero_grad()
        if self.plugin is not None:
            for b in self.module.buffers():  # as DDP does in its forward
                torch.distributed.broadcast(b, 0)

    def full(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in one piece, gathered where they are sharded. All processes must call it."""
        return {name: local(t) for name, t in tensors.items()}

    def release(self) -> None:
        """End training: every process holds the whole method again, as a plain module."""
        method = self.module
        if self.sharded is not None:
            assert isinstance(method, Method) and self.unsharded is not None  # as `prepare` left them
            self.sharded.reshard()
            self.sharded = None
            made: dict[Tensor, nn.Parameter] = {}  # by the sharded one, so that tied parameters stay tied
            for module in method.modules():
                for name, p in module._parameters.items():
                    if p is not None and p not in made:
                        made[p] = nn.Parameter(local(p.detach()), requires_grad=p.requires_grad)
                    module._parameters[name] = None if p is None else made[p]
            method.__class__ = self.unsharded[0]
            for hooks, before in self.unsharded[1]:
                hooks.clear()
                hooks.update(before)

    # Communication between processes

    def sum(self, values: list) -> list:
        """Each number summed over processes, in fp64; a single process returns them as they are."""
        return list(values) if self.world == 1 else self._reduced(values, "SUM")

    def most(self, values: list) -> list:
        """The maximum of each number over processes."""
        return list(values) if self.world == 1 else self._reduced(values, "MAX")

    def _reduced(self, values: list, how: str) -> list:
        if not values:
            return []
        made = [torch.as_tensor(v, device=self.device).detach().to(torch.float64) for v in values]
        flat = torch.stack(made)
        torch.distributed.all_reduce(flat, getattr(torch.distributed.ReduceOp, how))
        return [x.to(v.dtype) if isinstance(v, Tensor) else x for x, v in zip(flat, values)]

    def all_agree(self, yes: bool) -> bool:
        """Whether `yes` holds on every process. All processes get the same answer."""
        return yes if self.world == 1 else self.most([float(not yes)])[0].item() == 0

    def gather(self, mine: T) -> list[T]:
        """Every process's object, by rank, on all processes. Objects must be picklable."""
        return [mine] if self.world == 1 else gather_object([mine])

    def from_first(self, mine: T) -> T:
        """The object of process 0, on all processes."""
        return mine if self.world == 1 else broadcast_object_list([mine])[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """Run `work` on process 0 alone. All processes return its result, or raise its error."""
        result: list[T] = []
        error: Exception | None = None
        if self.leads:
            try:
                result.append(work())
            except Exception as e:
                error = e
        result, error = self.from_first((result, error))
        if error is not None:
            raise error
        return result[0]

    def wait(self) -> None:
        """Wait until all processes have come to this call."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def while_one_works(self) -> Iterator[None]:
        """The other processes wait at the end until process 0 is done, even beyond the backend's timeout.

        A process that ends takes the others with it, as in any collective call.
        """
        group = None
        if self.world > 1:
            group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        yield
        if group is not None:
            torch.distributed.barrier(group)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Inside, the backend's error about another process that has ended becomes a UserError.

        The backend raises at once, because it holds a connection to every process, so that none waits forever.
        """
        try:
            yield
        except RuntimeError as e:
            if self.world == 1 or not any(sign in str(e) for sign in PEER_ENDED):
                raise
            raise UserError(
                f"another of the {self.world} processes has ended, so process {self.rank} ends, too: what it said, "
                "here or on its node, tells why; if it said nothing it was killed, as where memory runs out"
            ) from e

    def log(self, line: dict, step: int) -> None:
        """Send a line of metrics to the trackers."""
        self.accelerator.log(line, step)


def local(tensor: Tensor) -> Tensor:
    """A tensor in one piece, gathered where it is sharded. All processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def held_here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, or its shard."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

"""What an update runs on: one process, DDP or FSDP2, by accelerate's configuration and launcher.

The only place that knows of processes. A loss is a sum over micro-batches and processes, so everything that averages
averages by global counts; every collective call is made by all processes alike, whatever the data.

DDP is accelerate's. FSDP2 is torch's `fully_shard` on the whole method as one unit, with the settings of accelerate's
plugin: a latent loop reads each weight k + 2 times a step, past the layers' own `forward`, so they are gathered once
before and given back once after. accelerate would make units of its own, and knows no FSDP on a CPU.
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

from kernels.errors import UserError
from latent.methods.base import Method
from train.process import needs_cpu

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_load_state_dict_post_hooks")
KNOWN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU", "FSDP")


class Engine:
    """This process, and its fellows: `rank` of `world`. `leads`: whether it is the one that writes and speaks."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.leads, self.device = accelerator.is_main_process, accelerator.device
        self.plugin: FullyShardedDataParallelPlugin | None = None  # of FSDP2
        self.module: nn.Module | None = None  # the method as `call` calls it
        self.plain: tuple[type[Method], list] | None = None  # the method's class and hooks before it was sharded
        self.used: set[str] = set()  # parameters that this update's backward has reached, under FSDP2
        if self.world > 1 and flag("ACCELERATE_USE_FSDP"):
            self.plugin = FullyShardedDataParallelPlugin()

    @classmethod
    def start(cls, device: str = "auto", **trackers) -> Engine:
        """By the environment that the launcher made. Raises UserError for a configuration that is not supported."""
        engine = cls(Accelerator(cpu=needs_cpu(device), **trackers))
        engine.check()
        return engine

    def check(self) -> None:
        """Raise UserError, naming the remedy, where accelerate's configuration asks for what a run's config says or for
        what we do not do: the same run would come out otherwise under the same id."""
        state = self.accelerator.state
        kind = DistributedType(state.distributed_type).value
        if kind not in KNOWN or flag("ACCELERATE_USE_DEEPSPEED") or flag("ACCELERATE_USE_MEGATRON_LM"):
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
        # versions are compared here, not strings; from 2.13 on a process may have no gradient for some
        if self.plugin is not None and torch.__version__ < "2.13":
            raise UserError(f"FSDP2 needs torch 2.13 or newer, this is {torch.__version__}")

    # The method: one door for what is learned from.

    def prepare(self, method: Method) -> None:
        """Let the processes share `method`. Its optimizer is made after this, for its parameters may be others then."""
        self.module = method
        if self.world == 1:
            return
        if self.plugin is None:
            # A process whose rows have no steps has no gradient for their decoder.
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
            self.module = self.accelerator.prepare(method)
            return
        hooks = [getattr(module, name) for module in method.modules() for name in HOOKS]
        self.plain = type(method), [(each, dict(each)) for each in hooks]
        for tensor in method.state_dict().values():  # as DDP does: one beginning
            torch.distributed.broadcast(tensor, 0)
        self._shard(method, self.plugin).set_reduce_scatter_unused_params(True)
        with self.whole():
            for name, p in method.named_parameters():
                if p.requires_grad:
                    p.register_post_accumulate_grad_hook(lambda p, name=name: self.used.add(name))

    def _shard(self, method: Method, plugin: FullyShardedDataParallelPlugin) -> FSDPModule:
        """The method, which is from now on of torch's class, too."""
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(self.device.type, (self.world,))
        asked = plugin.cpu_offload
        offload = asked if isinstance(asked, fsdp.OffloadPolicy) else fsdp.OffloadPolicy()
        return fsdp.fully_shard(method, mesh=mesh, reshard_after_forward=False, offload_policy=offload)

    def frozen(self, method: Method) -> Method:
        """A copy of a method that is not prepared yet, to compare with: without gradient, in evaluation."""
        kept = copy.deepcopy(method).requires_grad_(False).eval()
        if self.plugin is not None:
            self._shard(kept, self.plugin)
        return kept

    def call(self, verb: str | Callable[..., T], *args) -> T:
        """What is learned from, through `Method.forward`, so that gradients are shared. One `backward` must follow."""
        assert self.module is not None  # `prepare` comes first
        return self.module(verb, *args)

    @contextmanager
    def whole(self, method: Method | None = None) -> Iterator[None]:
        """Inside, all parameters are here as they are, for what is called past `call`. For all processes alike."""
        sharded = self._sharded(self.module if method is None else method)
        if sharded is None:
            yield
            return
        sharded.unshard()
        try:
            yield
        finally:
            sharded.reshard()

    def _sharded(self, module: nn.Module | None) -> FSDPModule | None:
        """A module where FSDP2 shards it, to call its verbs; None otherwise, as before `prepare`."""
        if self.plugin is None:
            return None
        from torch.distributed.fsdp import FSDPModule

        return module if isinstance(module, FSDPModule) else None

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch's forward and backward: gradients are summed over processes in the last one."""
        sharded = self._sharded(self.module)
        if sharded is not None:
            sharded.set_requires_gradient_sync(last)
            sharded.set_reshard_after_backward(last)  # gathered once an update
        elif self.world > 1 and not last:
            return self.accelerator.no_sync(self.module)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients of this micro-batch's part of the loss, added to those that are there."""
        # What engines mean over processes is to be the sum: the parts are divided by global counts already.
        (loss * self.world if self.world > 1 else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip: float, check: Callable[[Tensor], None]) -> Tensor:
        """One step of an optimizer. Returns the gradient norm before clipping, over all shards.

        `check(norm)` may raise before anything is changed. A parameter that no process has used has no gradient, and is
        left as it is: AdamW would decay one whose gradient is zero.
        """
        module = self.module
        assert module is not None  # `prepare` comes first
        if self.plugin is not None:
            named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
            found = self.sum([float(n in self.used) for n, _ in named])
            self.used.clear()
            for (_, p), n in zip(named, found):
                p.grad = p.grad if n else None
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        norm = local(torch.nn.utils.clip_grad_norm_(params, clip))
        check(norm)
        optimizer.step()
        optimizer.zero_grad()
        if self.plugin is not None:
            for b in module.buffers():  # as DDP does in its forward
                torch.distributed.broadcast(b, 0)
        return norm

    def full(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as one process would have them, whole. For all processes alike."""
        return {name: local(t) for name, t in tensors.items()}

    def release(self) -> None:
        """Training is over: the method is a plain one again, whole in every process."""
        method, sharded = self.module, self._sharded(self.module)
        if sharded is not None:
            assert isinstance(method, Method) and self.plain is not None  # as `prepare` left them
            sharded.reshard()
            made: dict[Tensor, nn.Parameter] = {}  # tied ones stay tied
            for module in method.modules():
                for name, p in module._parameters.items():
                    if p is not None and p not in made:
                        made[p] = nn.Parameter(local(p.detach()), requires_grad=p.requires_grad)
                    module._parameters[name] = None if p is None else made[p]
            method.__class__ = self.plain[0]
            for hooks, before in self.plain[1]:
                hooks.clear()
                hooks.update(before)

    # What processes tell each other.

    def sum(self, values: list) -> list:
        """Each number summed over processes: as given where there is one, in fp64 where there are more."""
        return list(values) if self.world == 1 else self._reduced(values, "SUM")

    def most(self, values: list) -> list:
        """The largest of each number over processes."""
        return list(values) if self.world == 1 else self._reduced(values, "MAX")

    def _reduced(self, values: list, how: str) -> list:
        if not values:
            return []
        made = [torch.as_tensor(v, device=self.device).detach().to(torch.float64) for v in values]
        flat = torch.stack(made)
        torch.distributed.all_reduce(flat, getattr(torch.distributed.ReduceOp, how))
        return [x.to(v.dtype) if isinstance(v, Tensor) else x for x, v in zip(flat, values)]

    def all_agree(self, yes: bool) -> bool:
        """Whether it holds on every process: a decision that all of them take alike."""
        return yes if self.world == 1 else self.most([float(not yes)])[0].item() == 0

    def gather(self, mine: T) -> list[T]:
        """What every process has, by rank, on all of them. Anything that can be pickled."""
        return [mine] if self.world == 1 else gather_object([mine])

    def from_first(self, mine: T) -> T:
        """What process 0 has."""
        return mine if self.world == 1 else broadcast_object_list([mine])[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """What process 0 does for all, once: they get what comes of it, or its error, and end as it does."""
        made: list[T] = []
        error: Exception | None = None
        if self.leads:
            try:
                made.append(work())
            except Exception as e:
                error = e
        made, error = self.from_first((made, error))
        if error is not None:
            raise error
        return made[0]

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()

    @contextmanager
    def while_one_works(self) -> Iterator[None]:
        """What process 0 does alone, for however long: the others wait at the end, past the backend's timeout.

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
        """Inside, what the backend says of a fellow that has ended is said in words. It says it at once: it holds a
        connection to each, so that nobody waits for what does not come."""
        try:
            yield
        except RuntimeError as e:
            if self.world == 1 or not any(sign in str(e) for sign in GONE):
                raise
            raise UserError(
                f"another of the {self.world} processes has ended, so process {self.rank} ends, too: what it said, "
                "here or on its node, tells why; if it said nothing it was killed, as where memory runs out"
            ) from e

    def log(self, line: dict, step: int) -> None:
        """To the trackers."""
        self.accelerator.log(line, step)


def local(tensor: Tensor) -> Tensor:
    """A tensor whole, wherever its shards are. For all processes alike."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def held_here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, or its shard."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

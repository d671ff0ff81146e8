"""What fused kernels need of a backbone: its layers as plain tensors, and the ops that were made ready for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from kernels import dispatch
from kernels.decode_step import LatentDecoder, Scan, StaticCache, Tensors
from kernels.decoder import Affine, Decoder
from kernels.latent_chain import Graphs
from kernels.recurrent_loop import RecurrentLoop
from latent.cache import Context, LayerCache

_steps_taken = 0  # by any optimizer: fused ones change weights without a new version


def _count(*_) -> None:
    global _steps_taken
    _steps_taken += 1


register_optimizer_step_post_hook(_count)


def plain_affine(module: nn.Module) -> Affine | None:
    """Weight, as (in, out), and bias of a linear module that is nothing more; None for any other."""
    if type(module) is nn.Linear:
        return module.weight.t(), module.bias
    if type(module).__name__ == "Conv1D":  # GPT-2's
        linear: Any = module
        return linear.weight, linear.bias
    return None


class ServedWeights:
    """Copies of projections for kernels that read a weight in one dtype, in one piece.

    Under autocast they are in its dtype; adapters (Hu et al. 2021) are added to the weight that they adapt. The copies
    keep their addresses and are written anew when an optimizer has stepped, a weight has a new version or lies
    elsewhere, or adapters are switched. A weight changed in place through `.data` alone is not noticed.
    """

    def __init__(self):
        self._copies: dict[tuple[nn.Module, torch.dtype, torch.device], tuple[Tensor, Tensor | None]] = {}
        self._asked: set[tuple[nn.Module, torch.dtype, torch.device]] = set()  # since the last refresh
        self._stamp: tuple | None = None

    def affine(self, module: nn.Module, dtype: torch.dtype) -> Affine | None:
        """Weight, as (in, out), and bias of a linear module or of one with adapters, in a dtype; None for another."""
        if not _can_be_merged(module):
            return None
        weight: Any = next(module.parameters())
        key = module, dtype, weight.device
        if key not in self._copies:
            with torch.inference_mode(False), torch.no_grad():  # they are written again in whatever mode comes next
                weight, bias = _merged(module)
                self._copies[key] = weight.to(dtype, copy=True), None if bias is None else bias.to(dtype, copy=True)
        self._asked.add(key)
        weight, bias = self._copies[key]
        return (weight if _inner(module) == "Conv1D" else weight.t()), bias

    def refresh(self) -> None:
        """Write the copies anew where their weights have changed; drop those not asked for since the last time."""
        self._copies = {key: copies for key, copies in self._copies.items() if key in self._asked}
        self._asked = set()
        stamp = _steps_taken, *(_state(module) for module, _, _ in self._copies)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        plain: list[tuple[Tensor, Tensor]] = []  # (mine, theirs)
        with torch.inference_mode(False), torch.no_grad():
            for (module, _, _), copies in self._copies.items():
                pairs = [(c, now) for c, now in zip(copies, _merged(module)) if c is not None and now is not None]
                if plain_affine(module) is not None:
                    plain += pairs
                    continue
                for copy, now in pairs:  # one after the other, so that one merged weight is in memory at a time
                    copy.copy_(now)
            if plain:
                torch._foreach_copy_([mine for mine, _ in plain], [theirs for _, theirs in plain])


def _state(module: Any) -> tuple:
    """What tells whether a module's merged weight is still the same."""
    weights = tuple((p.data_ptr(), p._version) for p in module.parameters())
    if plain_affine(module) is not None:
        return weights
    scales = tuple(module.scaling.items())
    return *weights, module.merged, module.disable_adapters, tuple(module.active_adapters), scales


def _can_be_merged(module: Any) -> bool:
    """Whether a module is linear, or linear with adapters that only add to its weight."""
    if plain_affine(module) is not None:
        return True
    if not (hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer")):
        return False
    if any(getattr(module, "use_dora", {}).values()) or plain_affine(module.get_base_layer()) is None:
        return False
    return not any(d.training and getattr(d, "p", 0.0) for d in module.lora_dropout.values())


def _inner(module: Any) -> str:
    """The name of a linear module's type, adapters taken off."""
    return type(module.get_base_layer() if hasattr(module, "get_base_layer") else module).__name__


def _merged(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, as the module stores them, adapters added."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = base.weight.detach()
    if base is not module and not module.merged and not module.disable_adapters:
        with torch.autocast(weight.device.type, enabled=False):
            for name in module.active_adapters:
                weight = weight + module.get_delta_weight(name).detach()
    return weight, None if base.bias is None else base.bias.detach()


class Fused:
    """The fused ops of one backbone, made anew where a weight lies elsewhere than before.

    `layers`: the family's arithmetic (`latent/layers.py`), None for a family that kernels do not know.
    """

    def __init__(self, lm: Any, layers):
        self.lm, self.layers = lm, layers
        self._served, self._served_head = ServedWeights(), ServedWeights()
        self._ops: dict[tuple, tuple[tuple, LatentDecoder | RecurrentLoop]] = {}  # by op and autocast's dtype
        self.graphs = Graphs()  # of training

    def __getstate__(self):
        """Without what was made ready, as a copy has weights of its own."""
        served = {"_served": ServedWeights(), "_served_head": ServedWeights()}
        return {"lm": self.lm, "layers": self.layers, "_ops": {}, "graphs": Graphs(), **served}

    def wanted(self, op: str) -> bool:
        """Whether a fused kernel is to run at all: without gradient, where there is a GPU or it is asked for."""
        if torch.is_grad_enabled():
            return False
        weight = self.lm.get_input_embeddings().weight
        return dispatch.choose(op, None, weight, called=False) == "triton"

    def decoder(self, op: str) -> Decoder | None:
        """The layers as plain tensors; None where no kernel is to run or none can."""
        if not self.wanted(op):
            return None
        weight = self.lm.get_input_embeddings().weight
        decoder = None
        if self.layers is not None:
            decoder = self.layers.decoder(self._affine(self.mixed()))
            self._served.refresh()
        if decoder is None:
            dispatch.choose(op, None, weight, f"no fused step for this {type(self.lm).__name__}", called=False)
        return decoder

    def mixed(self) -> torch.dtype | None:
        """Autocast's dtype, None where it is off."""
        return dispatch.autocast_dtype(self.lm.get_input_embeddings().weight.device)

    def tag(self) -> tuple:
        """What a chain may be gone on under: the same autocast, and no update since."""
        return self.mixed(), _steps_taken

    def _affine(self, mixed: torch.dtype | None) -> Callable[[nn.Module], Affine | None]:
        """How a projection is read: where it lies, or from a copy where autocast or adapters make it another."""

        def affine(module: nn.Module) -> Affine | None:
            plain = plain_affine(module)
            if plain is not None and mixed in (None, plain[0].dtype):
                return plain
            weight: Any = next(module.parameters())
            return self._served.affine(module, mixed or weight.dtype)

        return affine

    def operands(self, h_ND: Tensor) -> tuple[Tensor, Tensor] | None:
        """States and the head's weight (V, D) as they are multiplied: in autocast's dtype where it is on.

        Without gradient a weight in another dtype is a copy, kept between calls. None for a head that is more than a
        product.
        """
        head = self.lm.get_output_embeddings()
        if type(head) is not nn.Linear or head.bias is not None:
            return None
        dtype = self.mixed() or h_ND.dtype
        e_VD: Tensor = head.weight
        if e_VD.dtype != dtype and torch.is_grad_enabled():
            e_VD = e_VD.to(dtype)
        elif e_VD.dtype != dtype:
            served = self._served_head.affine(head, dtype)
            assert served is not None  # as it is for a linear module
            self._served_head.refresh()
            e_VD = served[0].t()
        return h_ND.to(dtype), e_VD

    def read_by(self, feed: object, h_BD: Tensor) -> list[Tensor]:
        """The weights that a feedback may read, the head's in the dtype that it is multiplied in, up to date."""
        if feed is None:
            return []
        ends, operands = (self.lm.get_input_embeddings(), self.lm.get_output_embeddings(), feed), self.operands(h_BD)
        read: list[Tensor] = [p for m in ends if isinstance(m, nn.Module) for p in m.parameters()]
        return read if operands is None else [*read, operands[1]]

    def ready(self, op: str, decoder: Decoder, more: tuple[Tensor, ...], make: Callable):
        """What an op keeps between calls, made anew where a weight lies elsewhere than before."""
        weights = (*(x for pair in decoder.affines() for x in pair if x is not None), *more)
        key, slot = tuple((w.data_ptr(), w.dtype) for w in weights), (op, self.mixed())
        if slot not in self._ops or self._ops[slot][0] != key:
            self._ops[slot] = key, make()
        return self._ops[slot][1]

    def decode(self) -> LatentDecoder | None:
        """Steps of one position; None where they do not apply."""
        op = "decode_step"
        decoder = self.decoder(op)
        return None if decoder is None else self.ready(op, decoder, (), lambda: LatentDecoder(decoder))

    def scan(
        self, h_BD: Tensor, context: Context, scan: Scan, k: int, stride: int, weights: object,
        given: Callable[[], Tensors], carry: Tensors,
    ) -> tuple[Tensor, Context, Tensors, Tensors] | None:  # fmt: skip
        """`chain` and `write` of a backbone; `weights`: the module that the scan reads, None = it reads none."""
        past: StaticCache | list[tuple[Tensor, Tensor]]
        decoder: LatentDecoder | None
        if not self.wanted("decode_step"):
            return None
        tag = self.tag()
        if isinstance(context.past, StaticCache) and context.past.tag == tag:
            past, decoder = context.past, context.past.decoder
        else:
            caches = [c for c in context.layers if isinstance(c, LayerCache)]
            past, decoder = [(c.k, c.v) for c in caches], self.decode() if caches else None
        if decoder is None or not decoder.serves(h_BD):
            return None
        pos_KB = context.next_B + stride * torch.arange(1, k + 1, device=context.next_B.device)[:, None] - 1
        add_KBD, ropes = self.layers.places(h_BD, pos_KB)
        reads = self.read_by(weights, h_BD)
        states_BKD, longer, carry, made = decoder.scan(
            past, h_BD, scan, k, given(), carry, add_KBD, ropes, context.mask_BS, reads
        )
        if not isinstance(longer, StaticCache):  # the kernel does not compile here
            return None
        longer.tag = tag
        after = Context(longer, longer.visible_BS, context.next_B + k * stride, context.reach + k * stride)
        return states_BKD, after, carry, made

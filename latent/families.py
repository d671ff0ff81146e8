"""A decoder through its family's own `forward`: for every family whose arithmetic is not in `latent/layers.py`."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks
from transformers.masking_utils import eager_mask

from kernels.attention import unplanned
from kernels.errors import UserError
from latent.cache import Caches, LayerCache
from latent.taps import Recording


class _Cache(DynamicCache):
    """Remembers what each layer adds, as the very tensors that are added."""

    def __init__(self, past: Caches, order_BS: Tensor | None):
        super().__init__()
        for i, layer in enumerate(past):
            assert isinstance(layer, LayerCache)  # rollouts branch only where the arithmetic is ours
            super().update(_moved(layer.k, order_BS, 2), _moved(layer.v, order_BS, 2), i)
        self.added: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.added[layer_idx] = key_states, value_states
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def forward(
    lm: PreTrainedModel, x_BTD: Tensor, pos_BT: Tensor, past: Caches | None, mask_BS: Tensor | None,
    recompute: bool = False, recording: Recording | None = None,
) -> tuple[Tensor, Caches]:  # fmt: skip
    """Final hidden states (B, T, D) of T new positions, and the layers' longer caches; all of every layer is computed.

    A family's sliding window counts cached positions. Where hidden ones lie between visible ones, as padding between
    two turns does, it is given each row's visible ones side by side, as if the row were alone.

    Raises UserError for gradient checkpointing, ours (`recompute`) or the model's own, for a cache of something else
    than K and V, and for a family that does not give what is recorded.
    """
    if torch.is_grad_enabled():
        renamed = hasattr(type(lm), "is_activation_checkpointing")
        if recompute or (lm.is_activation_checkpointing if renamed else lm.is_gradient_checkpointing):
            raise UserError(
                f"gradient checkpointing of {type(lm).__name__} loses the gradient of what is cached: turn it off"
            )
    decoder = lm.get_decoder()
    old_BS, new_BT, all_BS = _side_by_side(mask_BS, x_BTD.shape[1])
    cache = _Cache(past or [], old_BS)
    if mask_BS is None:
        mask_BS = x_BTD.new_ones(len(x_BTD), cache.get_seq_length() + x_BTD.shape[1])
    x_BTD, pos_BT, mask_BS = _moved(x_BTD, new_BT, 1), _moved(pos_BT, new_BT, 1), _moved(mask_BS.long(), all_BS, 1)
    named = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    more: dict[str, Any] = {named: cache}
    inner, weighed = (False, False) if recording is None else (recording.inner, bool(recording.weighed))
    if inner:
        more["output_hidden_states"] = True
    if weighed:
        more["output_attentions"] = True
    with _attention(decoder, weighed, x_BTD.dtype), unplanned(x_BTD):
        out = decoder(inputs_embeds=x_BTD, attention_mask=mask_BS, position_ids=pos_BT, use_cache=True, **more)
    new_BT, all_BS = (None if moved is None else moved.argsort(1) for moved in (new_BT, all_BS))  # back again
    last_BTD, longer = _moved(out.last_hidden_state, new_BT, 1), []
    cache.added = {n: (_moved(k, new_BT, 2), _moved(v, new_BT, 2)) for n, (k, v) in cache.added.items()}
    for layer in cache.layers:
        k, v = getattr(layer, "keys", None), getattr(layer, "values", None)
        if k is None or v is None:
            raise UserError(f"{type(lm).__name__} keeps something else than K and V in its cache: not supported")
        longer.append(LayerCache(_moved(k, all_BS, 2), _moved(v, all_BS, 2)))
    if recording is not None:
        depth = len(longer)
        states = _all_of(lm, out, "hidden_states", depth + 1)[:depth] if inner else ()
        weights = _all_of(lm, out, "attentions", depth) if weighed else [None] * depth
        for n, h_BTD in enumerate(states):
            recording.state(n, _moved(h_BTD, new_BT, 1))
        for n, w_BHTS in enumerate(weights):
            if w_BHTS is not None:
                w_BHTS = _moved(_moved(w_BHTS, new_BT, 2), all_BS, 3)
            recording.block(n + 1, *cache.added[n], w_BHTS)
        recording.state(depth, last_BTD)
    return last_BTD, longer


def _side_by_side(mask_BS: Tensor | None, t: int) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """The cached positions, the last `t` and all (B, N), in the order: hidden ones, visible ones, new padding.

    None where no row has hidden ones between visible ones.
    """
    seen_BS = None if mask_BS is None else mask_BS.bool()
    if seen_BS is None or not (seen_BS[:, :-1] & ~seen_BS[:, 1:]).any():
        return None, None, None
    old_BS = seen_BS[:, :-t].byte().argsort(dim=1, stable=True)
    new_BT = (~seen_BS[:, -t:]).byte().argsort(dim=1, stable=True)
    return old_BS, new_BT, torch.cat([old_BS, old_BS.shape[1] + new_BT], 1)


def _moved(x: Tensor, order_BN: Tensor | None, dim: int) -> Tensor:
    """A tensor (B, ...) with the positions along a dimension in another order; None = as they are."""
    if order_BN is None:
        return x
    shape = [len(order_BN) if d == 0 else order_BN.shape[1] if d == dim else 1 for d in range(x.dim())]
    return x.take_along_dim(order_BN.view(shape), dim)


def final_norm(lm: PreTrainedModel) -> nn.Module:
    """The norm before the head. Raises UserError for a family where it is not found."""
    names = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "layer_norm")
    found = [m for m in (getattr(lm.get_decoder(), name, None) for name in names) if m is not None]
    if not found:
        raise UserError(f"the final norm of {type(lm).__name__} is not known: no lens for its inner layers")
    return found[0]


def _all_of(lm: PreTrainedModel, out, name: str, count: int) -> Sequence[Tensor]:
    """One tensor a layer. Raises UserError where the family gives fewer or none."""
    found = out.get(name) or ()
    if len(found) != count or any(x is None for x in found):
        raise UserError(
            f"{type(lm).__name__} does not give its {name.replace('_', ' ')}, which this needs: "
            f"GPT-2, Llama, Qwen3 and families whose output has `{name}` of every layer do"
        )
    return found


@contextmanager
def _attention(decoder: PreTrainedModel, weighed: bool, dtype: torch.dtype) -> Iterator[None]:
    """Where weights are asked for, attention is computed by way of them meanwhile: the faster kinds do not give them.

    Its softmax is the family's, mostly in fp32 whatever the model's dtype.
    """
    before, fp64 = decoder.config._attn_implementation, dtype == torch.float64
    if fp64:
        masks["eager"] = _mask_in_range
    try:
        if weighed and before != "eager":
            decoder.set_attn_implementation("eager")
        yield
    finally:
        if fp64:
            del masks["eager"]  # ours, which lay over theirs
        if weighed and before != "eager":
            decoder.set_attn_implementation(before)


def _mask_in_range(*args, **kwargs) -> Tensor | None:
    """What is added to the scores. Where nothing may be seen it is fp64's lowest number, minus infinity to a softmax in
    fp32, as most families have it: padding, which sees nothing at all, would become NaN, and spread to all."""
    mask = eager_mask(*args, **kwargs)
    return mask if mask is None else mask.clamp(min=torch.finfo(torch.float32).min)

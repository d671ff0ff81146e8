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

from kernels.errors import UserError
from latent.cache import Caches, LayerCache
from latent.taps import Recording


class _Cache(DynamicCache):
    """Remembers what each layer adds, as the very tensors that are added."""

    def __init__(self, past: Caches):
        super().__init__()
        for i, layer in enumerate(past):
            assert isinstance(layer, LayerCache)  # rollouts branch only where the arithmetic is ours
            super().update(layer.k, layer.v, i)
        self.added: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.added[layer_idx] = key_states, value_states
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def forward(
    lm: PreTrainedModel, x_BTD: Tensor, pos_BT: Tensor, past: Caches | None, mask_BS: Tensor | None,
    recompute: bool = False, recording: Recording | None = None,
) -> tuple[Tensor, Caches]:  # fmt: skip
    """Final hidden states (B, T, D) of T new positions, and the layers' longer caches; all of every layer is computed.

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
    cache = _Cache(past or [])
    size = cache.get_seq_length() + x_BTD.shape[1]
    mask_BS = x_BTD.new_ones(len(x_BTD), size, dtype=torch.long) if mask_BS is None else mask_BS.long()
    named = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    more: dict[str, Any] = {named: cache}
    inner, weighed = (False, False) if recording is None else (recording.inner, bool(recording.weighed))
    if inner:
        more["output_hidden_states"] = True
    if weighed:
        more["output_attentions"] = True
    with _attention(decoder, weighed, x_BTD.dtype):
        out = decoder(inputs_embeds=x_BTD, attention_mask=mask_BS, position_ids=pos_BT, use_cache=True, **more)
    longer = []
    for layer in cache.layers:
        k, v = getattr(layer, "keys", None), getattr(layer, "values", None)
        if k is None or v is None:
            raise UserError(f"{type(lm).__name__} keeps something else than K and V in its cache: not supported")
        longer.append(LayerCache(k, v))
    if recording is not None:
        depth = len(longer)
        states = _all_of(lm, out, "hidden_states", depth + 1)[:depth] if inner else ()
        weights = _all_of(lm, out, "attentions", depth) if weighed else [None] * depth
        for n, h_BTD in enumerate(states):
            recording.state(n, h_BTD)
        for n, w_BHTS in enumerate(weights):
            recording.block(n + 1, *cache.added[n], w_BHTS)
        recording.state(depth, out.last_hidden_state)
    return out.last_hidden_state, longer


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

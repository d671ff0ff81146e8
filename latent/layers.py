"""The arithmetic of a decoder layer, family by family, over the modules of a `transformers` model.

The same numbers as the family's own `forward` (a test holds them together), in the pieces a thought loop needs:
project to q, k, v; attend; finish. `forward` and `loop` put them together again.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.decoder import Act, Affine, Decoder, Layer
from kernels.recurrent_block import inject
from latent.cache import BranchedCache, Caches, LayerCache, visible
from latent.fused import plain_affine
from latent.taps import Recording

ACTIVATIONS: dict[str, Act] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}


Projection = Callable[[nn.Module], Affine | None]  # a linear module -> its weight, as (in, out), and bias


def known_layers(lm) -> "GPT2 | Llama | None":
    """The family's pieces, or None for a family or a setting not written down here."""
    kind, config = type(lm).__name__, lm.config
    if kind == "GPT2LMHeadModel":
        odd = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention
        return None if odd or not config.scale_attn_weights else GPT2(lm)
    if kind in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        types = getattr(config, "layer_types", None) or ["full_attention"]
        return Llama(lm) if set(types) == {"full_attention"} else None
    return None


def forward(
    layers, x_BTD: Tensor, pos_BT: Tensor, past: Caches | None, mask_BS: Tensor | None, keep: int,
    recompute: bool, recording: Recording | None,
) -> tuple[Tensor, Caches]:  # fmt: skip
    """Final hidden states of at least the last `keep` of T new positions, (B, T, D), and the layers' longer caches."""
    t, depth = x_BTD.shape[1], len(layers.blocks)
    size = t + (past[0].size if past else 0)
    visible_BTS = visible(t, size, mask_BS, x_BTD.device)
    h_BTD, rope = layers.enter(x_BTD, pos_BT)
    if recording is not None:
        recording.state(0, h_BTD)
        keep = max(keep, recording.last)
    caches: list[LayerCache | BranchedCache] = []
    for n, layer in enumerate(layers.blocks, 1):
        wanted, weighed = keep if n == depth else t, recording is not None and n in recording.weighed
        args = (layer, h_BTD, rope, wanted, past[n - 1] if past else None, visible_BTS, weighed)
        h_BTD, cache, new = checkpoint(_layer, *args, use_reentrant=False) if recompute else _layer(*args)
        caches.append(cache)
        if recording is not None:
            recording.block(n, *new)
            if n < depth:
                recording.state(n, h_BTD)
    h_BTD = layers.norm(h_BTD)
    if recording is not None:
        recording.state(depth, h_BTD)
    return h_BTD, caches


def loop(
    layers, h_BTD: Tensor, blocks: range, pos_BT: Tensor, mask_BT: Tensor | None, constant_BTD: Tensor | None,
    recompute: bool, recording: Recording | None,
) -> Tensor:  # fmt: skip
    """Some of the layers over a whole causal sequence, without cache; `constant_BTD` is added to `h_BTD` first."""
    rope = layers.rope(h_BTD, pos_BT)
    visible_BTS = visible(h_BTD.shape[1], h_BTD.shape[1], mask_BT, h_BTD.device)
    if recording is not None and not blocks:
        recording.state(blocks.start, h_BTD)
    for i in blocks:
        weighed = recording is not None and i + 1 in recording.weighed
        args = (layers.blocks[i], h_BTD, constant_BTD if i == blocks[0] else None, rope, visible_BTS, weighed)
        h_BTD, entered_BTD, new = checkpoint(_looped, *args, use_reentrant=False) if recompute else _looped(*args)
        if recording is not None:
            if i == blocks[0]:
                recording.state(i, entered_BTD)
            recording.block(i + 1, *new)
            recording.state(i + 1, h_BTD)
    return h_BTD


New = tuple[Tensor, Tensor, Tensor | None]  # K and V of new positions, and their attention weights where asked for


def _layer(
    layer, h_BTD: Tensor, rope, wanted: int, past: LayerCache | BranchedCache | None, visible_BTS, weighed: bool
) -> tuple[Tensor, LayerCache | BranchedCache, New]:
    """One layer over T new positions: the last `wanted` of them, its longer cache, and what is new in it."""
    q, k, v = layer.project(h_BTD, rope, wanted)
    cache, weights = LayerCache(k, v) if past is None else past.append(k, v), None
    if weighed:
        a, weights = cache.weigh(q, visible_BTS, layer.dropout())
    else:
        a = cache.attend(q, visible_BTS, layer.dropout())
    return layer.finish(h_BTD[:, h_BTD.shape[1] - wanted :], a), cache, (k, v, weights)


def _looped(
    layer, h_BTD: Tensor, constant_BTD: Tensor | None, rope, visible_BTS, weighed: bool
) -> tuple[Tensor, Tensor, New]:
    """One layer over a whole sequence without cache, and what went into it: `h_BTD`, `constant_BTD` added first."""
    normed_BTD, weights = None, None
    if constant_BTD is not None and torch.is_autocast_enabled(h_BTD.device.type):
        h_BTD = h_BTD + constant_BTD
    elif constant_BTD is not None:
        weight, bias, eps = layer.first_norm()
        flat = inject(h_BTD.flatten(0, 1), constant_BTD.flatten(0, 1), weight, bias, eps)
        h_BTD, normed_BTD = (x.view_as(h_BTD) for x in flat)
    q, k, v = layer.project(h_BTD, rope, h_BTD.shape[1], normed_BTD)
    if weighed:
        a, weights = LayerCache(k, v).weigh(q, visible_BTS, layer.dropout())
    else:
        a = LayerCache(k, v).attend(q, visible_BTS, layer.dropout())
    return layer.finish(h_BTD, a), h_BTD, (k, v, weights)


class GPT2:
    """Radford et al. 2019: learned positions, LayerNorm, one fused projection."""

    def __init__(self, lm):
        self.body = lm.transformer
        self.blocks = [GPT2Layer(b) for b in self.body.h]
        self.norm = self.body.ln_f
        self.heads = lm.config.n_head

    def enter(self, x_BTD: Tensor, pos_BT: Tensor):
        return self.body.drop(x_BTD + self.body.wpe(pos_BT)), None

    def rope(self, h_BTD, pos_BT):
        return None

    def places(self, h_BD: Tensor, pos_KB: Tensor):
        """What K chained steps add to their inputs, (K, B, D), and their rotations, (K, B, d): one of the two."""
        return self.body.wpe(pos_KB), None

    def decoder(self, affine: Projection = plain_affine) -> Decoder | None:
        """The layers as plain tensors; None where they hold more than `affine` can read, or dropout is at work."""
        config, drops = self.body.config, [self.body.drop]
        act, layers = ACTIVATIONS.get(config.activation_function), []
        for block in self.body.h:
            attn, mlp, ln_1, ln_2 = block.attn, block.mlp, block.ln_1, block.ln_2
            qkv, out, up, down = (affine(x) for x in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj))
            if qkv is None or out is None or up is None or down is None:
                return None
            drops += [attn.attn_dropout, attn.resid_dropout, mlp.dropout]
            layers.append(Layer((ln_1.weight, ln_1.bias), (qkv,), (), out, (ln_2.weight, ln_2.bias), (up,), down))
        if act is None or any(drop.training and drop.p for drop in drops):
            return None
        norm, d = (self.norm.weight, self.norm.bias), self.body.embed_dim // self.heads
        return Decoder(tuple(layers), norm, self.heads, self.heads, d, "layer", config.layer_norm_epsilon, act)


class GPT2Layer:
    def __init__(self, block):
        self.block, self.attn, self.heads = block, block.attn, block.attn.num_heads

    def dropout(self) -> float:
        return self.attn.attn_dropout.p if self.attn.training else 0.0

    def first_norm(self) -> tuple[Tensor, Tensor | None, float]:
        """Weight, bias and epsilon of the norm that `project` begins with."""
        return self.block.ln_1.weight, self.block.ln_1.bias, self.block.ln_1.eps

    def project(self, h_BTD, rope, wanted: int, normed_BTD=None):
        """q of the last `wanted` positions, k and v of all: (B, H, T, d) each; `normed_BTD`: h after the first norm."""
        x, width, c = normed_BTD, h_BTD.shape[-1], self.attn.c_attn
        if x is None:
            x = _layer_norm(self.block.ln_1, h_BTD)
        if wanted == x.shape[1] or type(c).__name__ != "Conv1D":
            q, k, v = _linear(c, x).split(width, -1)
            q = q[:, x.shape[1] - wanted :]
        else:
            q = torch.matmul(x[:, -wanted:], c.weight[:, :width]) + c.bias[:width]
            k, v = (torch.matmul(x, c.weight[:, width:]) + c.bias[width:]).split(width, -1)
        return tuple(y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))

    def finish(self, h_BTD, a_BTD):
        """Output projection, residual, MLP, residual."""
        mlp = self.block.mlp
        h_BTD = h_BTD + self.attn.resid_dropout(_linear(self.attn.c_proj, a_BTD))
        up = _act(mlp.act, _linear(mlp.c_fc, _layer_norm(self.block.ln_2, h_BTD)))
        return h_BTD + mlp.dropout(_linear(mlp.c_proj, up))


def _linear(module, x_BTD: Tensor) -> Tensor:
    """GPT-2's Conv1D without its module's overhead; anything put in its place (LoRA) as it is."""
    if type(module).__name__ != "Conv1D":
        return module(x_BTD)
    return torch.addmm(module.bias, x_BTD.flatten(0, 1), module.weight).unflatten(0, x_BTD.shape[:2])


def _act(module, x_BTD: Tensor) -> Tensor:
    """GPT-2's GELU as one operation: `transformers` writes it out in eight."""
    if type(module).__name__ == "NewGELUActivation":
        return F.gelu(x_BTD, approximate="tanh")
    return module(x_BTD)


def _layer_norm(module, x_BTD: Tensor) -> Tensor:
    return torch.layer_norm(x_BTD, module.normalized_shape, module.weight, module.bias, module.eps)


class Llama:
    """Touvron et al. 2023, and Qwen3 (Yang et al. 2025), which adds an RMSNorm to q and k."""

    def __init__(self, lm):
        self.body = lm.model
        self.blocks = [LlamaLayer(b) for b in self.body.layers]
        self.norm = self.body.norm

    def enter(self, x_BTD: Tensor, pos_BT: Tensor):
        return x_BTD, self.rope(x_BTD, pos_BT)

    def rope(self, h_BTD, pos_BT):
        cos_BTd, sin_BTd = self.body.rotary_emb(h_BTD, pos_BT)
        return cos_BTd[:, None], sin_BTd[:, None]

    def places(self, h_BD: Tensor, pos_KB: Tensor):
        return None, tuple(r.float() for r in self.body.rotary_emb(h_BD, pos_KB))

    def decoder(self, affine: Projection = plain_affine) -> Decoder | None:
        """The layers as plain tensors; None where they hold more than `affine` can read, or dropout is at work."""
        config, layers = self.body.config, []
        act = ACTIVATIONS.get(config.hidden_act)
        if act is None or any(layer.dropout() for layer in self.blocks):
            return None
        for block in self.body.layers:
            attn, mlp = block.self_attn, block.mlp
            names = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            linears = [x for x in map(affine, names) if x is not None]
            if len(linears) < len(names):
                return None
            q, k, v, out, gate, up, down = linears
            qk_norm = ((attn.q_norm.weight, None), (attn.k_norm.weight, None)) if hasattr(attn, "q_norm") else ()
            norm_1, norm_2 = (block.input_layernorm.weight, None), (block.post_attention_layernorm.weight, None)
            layers.append(Layer(norm_1, (q, k, v), qk_norm, out, norm_2, (gate, up), down))
        heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, self.blocks[0].attn.head_dim
        return Decoder(tuple(layers), (self.norm.weight, None), heads, kv_heads, d, "rms", config.rms_norm_eps, act)


class LlamaLayer:
    def __init__(self, block):
        self.block, self.attn = block, block.self_attn

    def dropout(self) -> float:
        return self.attn.attention_dropout if self.attn.training else 0.0

    def first_norm(self) -> tuple[Tensor, Tensor | None, float]:
        return self.block.input_layernorm.weight, None, self.block.input_layernorm.variance_epsilon

    def project(self, h_BTD, rope, wanted: int, normed_BTD=None):
        x, attn, size = normed_BTD, self.attn, self.attn.head_dim
        if x is None:
            x = self.block.input_layernorm(h_BTD)
        q = attn.q_proj(x[:, x.shape[1] - wanted :]).unflatten(-1, (-1, size))
        k, v = (p(x).unflatten(-1, (-1, size)) for p in (attn.k_proj, attn.v_proj))
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        cos, sin = rope
        return _rotate(q, cos[:, :, -wanted:], sin[:, :, -wanted:]), _rotate(k, cos, sin), v

    def finish(self, h_BTD, a_BTD):
        h_BTD = h_BTD + self.attn.o_proj(a_BTD)
        return h_BTD + self.block.mlp(self.block.post_attention_layernorm(h_BTD))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves paired as in `transformers` (Su et al. 2021, eq. 34)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin

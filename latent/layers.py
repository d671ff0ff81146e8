"""The arithmetic of a decoder layer, family by family, over the modules of a `transformers` model.

The same numbers as the family's own `forward` (a test holds them together), in the pieces a thought loop needs:
project to q, k, v; attend; finish.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def known_layers(lm):
    """The family's pieces, or None for a family or a setting not written down here."""
    kind, config = type(lm).__name__, lm.config
    if kind == "GPT2LMHeadModel":
        odd = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention
        return None if odd or not config.scale_attn_weights else GPT2(lm)
    if kind in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        types = getattr(config, "layer_types", None) or ["full_attention"]
        return Llama(lm) if set(types) == {"full_attention"} else None
    return None


def visible(t: int, size: int, mask_BS: Tensor | None, device) -> Tensor | str | None:
    """Which of `size` cached positions each of the last `t` may attend: None = all, "causal", or bool (B, 1, T, S)."""
    if mask_BS is None and (t == 1 or t == size):
        return None if t == 1 else "causal"
    causal_TS = torch.ones(t, size, dtype=torch.bool, device=device).tril(size - t)
    if mask_BS is None:
        return causal_TS
    own_TS = torch.eye(t, size, dtype=torch.bool, device=device).roll(size - t, 1)  # a padded query sees itself: no NaN
    return ((causal_TS & mask_BS[:, None]) | own_TS)[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, visible_BTS, layer) -> Tensor:
    """Scaled dot-product attention; q (B, H, T, d), k and v (B, H_kv, S, d) -> (B, T, H d).

    With fewer queries than positions and no mask, the queries are the last positions.
    """
    t, size = q.shape[2], k.shape[2]
    mask = None if isinstance(visible_BTS, str) else visible_BTS
    causal = isinstance(visible_BTS, str) and t == size
    if mask is not None and mask.shape[-2] != t:
        mask = mask[..., -t:, :]
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    a = F.scaled_dot_product_attention(q, k, v, mask, layer.dropout(), causal)
    return a.transpose(1, 2).flatten(2)


class GPT2:
    """Radford et al. 2019: learned positions, LayerNorm, one fused projection."""

    def __init__(self, lm):
        self.body = lm.transformer
        self.blocks = [GPT2Layer(b) for b in self.body.h]
        self.norm = self.body.ln_f

    def enter(self, x_BTD: Tensor, pos_BT: Tensor):
        return self.body.drop(x_BTD + self.body.wpe(pos_BT)), None

    def rope(self, h_BTD, pos_BT):
        return None


class GPT2Layer:
    def __init__(self, block):
        self.block, self.attn, self.heads = block, block.attn, block.attn.num_heads

    def dropout(self) -> float:
        return self.attn.attn_dropout.p if self.attn.training else 0.0

    def project(self, h_BTD, rope, wanted: int):
        """q of the last `wanted` positions, k and v of all: (B, H, T, d) each."""
        x, width, c = _layer_norm(self.block.ln_1, h_BTD), h_BTD.shape[-1], self.attn.c_attn
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
        up = mlp.act(_linear(mlp.c_fc, _layer_norm(self.block.ln_2, h_BTD)))
        return h_BTD + mlp.dropout(_linear(mlp.c_proj, up))


def _linear(module, x_BTD: Tensor) -> Tensor:
    """GPT-2's Conv1D without its module's overhead; anything put in its place (LoRA) as it is."""
    if type(module).__name__ != "Conv1D":
        return module(x_BTD)
    return torch.addmm(module.bias, x_BTD.flatten(0, 1), module.weight).unflatten(0, x_BTD.shape[:2])


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


class LlamaLayer:
    def __init__(self, block):
        self.block, self.attn = block, block.self_attn

    def dropout(self) -> float:
        return self.attn.attention_dropout if self.attn.training else 0.0

    def project(self, h_BTD, rope, wanted: int):
        x, attn, size = self.block.input_layernorm(h_BTD), self.attn, self.attn.head_dim
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

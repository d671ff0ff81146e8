"""What the benchmark measures: each op at each size, its arms, and what must move and be multiplied.

Rivals of a chain of latent steps have the same weights and the same cache, and give the same states.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

from kernels.budget import SHAPES, Shape, random_decoder

BATCHES = (1, 4, 16, 64)
STEPS, PROMPT = 8, 128  # latents in a chain, positions before them
RECURRENCES = 16
SETS = 4  # of inputs of an op on rows
TOP_K = 16


@dataclass(frozen=True)
class Plan:
    """A row of the complete table, but for the implementation."""

    op: str
    shape: Shape
    batch: int
    dtype: str = "bf16"

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape.name} B={self.batch} {self.dtype}"


@dataclass(frozen=True)
class Case:
    """One op at one size. `calls` by implementation, each returning what `exact` does in fp64 or fp32.

    `moved` in bytes and `products` in floating-point operations a call, which has `per` units. `rows`: whether a call
    is too short to be timed by itself; `calls` then are lists, one for each set of inputs.
    """

    calls: Mapping[str, Callable | list[Callable]]
    exact: Callable
    moved: int
    products: int
    per: int = 1


def planned() -> list[Plan]:
    """What a complete table holds, the most important first."""
    plans = [Plan("decode_step", shape, batch) for shape in SHAPES for batch in BATCHES]
    plans.sort(key=lambda p: p.shape.name != "qwen3-0.6b")
    plans += [Plan("linear_logprob", shape, 8192) for shape in SHAPES]
    plans += [Plan("decode_step", shape, 1, "fp32") for shape in SHAPES]
    plans += [Plan("recurrent_loop", shape, batch) for shape in SHAPES for batch in BATCHES]
    plans += [Plan("vocab_mix", shape, batch) for shape in SHAPES for batch in BATCHES]
    plans += [Plan("vocab_mix", shape, 1, "fp32") for shape in SHAPES]
    return plans + [Plan(op, shape, batch) for op in ROW_OPS for shape in SHAPES for batch in (1, 64)]


def chain_case(plan: Plan, device: str, layers: int | None) -> Case:
    import torch

    from kernels.decode_step import LatentDecoder

    shape, batch, dtype = plan.shape, plan.batch, torch_dtype(plan.dtype)
    decoder = random_decoder(shape, device, dtype, layers)
    kv = (batch, shape.kv_heads, PROMPT, shape.head)
    cached = lambda: torch.randn(kv, device=device, dtype=dtype)  # noqa: E731
    past = [(cached(), cached()) for _ in decoder.layers]
    h = torch.randn(batch, shape.d, device=device, dtype=dtype)
    rope = None if decoder.kind == "layer" else rotations(shape, batch, device)
    fused, plain = (LatentDecoder(decoder, impl) for impl in ("triton", "torch"))

    def exact():
        double = in_dtype(decoder, torch.float64)
        pairs = [(k.double(), v.double()) for k, v in past]
        return LatentDecoder(double, "torch").run(
            pairs, h.double(), None, STEPS, ropes=rope and in_dtype(rope, torch.float64)
        )[0]

    calls = {
        "triton": lambda: fused.run(past, h, None, STEPS, ropes=rope)[0],
        "torch": lambda: plain.run(past, h, None, STEPS, ropes=rope)[0],
        "graph": StaticChain(decoder, past, h, rope, compiled=False).call,
        "compile": StaticChain(decoder, past, h, rope, compiled=True).call,
        "hf": hf_chain(shape, decoder, past, h),
    }
    weights = [p for pair in decoder.affines() for p in pair if p is not None]
    cache = sum(x.numel() * x.element_size() for pair in past for x in pair)
    moved = STEPS * (sum(p.numel() * p.element_size() for p in weights) + cache)
    return Case(calls, exact, moved, 2 * STEPS * batch * sum(p.numel() for p in weights), STEPS)


def rotations(shape: Shape, batch: int, device: str):
    """Cosines and sines (K, B, d) of the latents' positions, in fp32, as the families have them."""
    import torch

    rates = 10000.0 ** -(torch.arange(0, shape.head, 2, device=device) / shape.head)
    angle = (PROMPT + torch.arange(STEPS, device=device))[:, None] * rates
    angle = torch.cat([angle, angle], 1)[:, None].expand(STEPS, batch, shape.head)
    return angle.cos().contiguous(), angle.sin().contiguous()


def torch_dtype(name: str):
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def in_dtype(value, dtype):
    """The same decoder, or the same tuple of tensors, in another dtype."""
    import torch

    if isinstance(value, tuple):
        return tuple(in_dtype(v, dtype) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: in_dtype(getattr(value, f.name), dtype) for f in fields(value)})
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


def replayed(graph, out) -> Callable:
    """A call that runs a captured graph again and returns what it writes."""

    def call():
        graph.replay()
        return out

    return call


class StaticChain:
    """Plain torch, static cache, the whole chain one graph; what surrounds attention compiled or not."""

    def __init__(self, decoder, past, h, rope, compiled: bool):
        import torch

        from kernels.graphs import captured
        from kernels.latent_chain.reference import finish, heads

        self.decoder, self.past, self.start = decoder, past, h
        self.rope = rope and in_dtype(rope, h.dtype)
        self.h = torch.empty_like(h)
        b, kv_heads, size, d = past[0][0].shape
        self.kv = [tuple(x.new_zeros(b, kv_heads, size + STEPS, d) for x in pair) for pair in past]
        self.heads: Callable = heads
        self.finish: Callable = finish
        self.replay = self.run
        if compiled:
            torch._dynamo.reset()  # or arms share one limit of recompilations
            backend = "inductor" if h.is_cuda else "eager"
            self.heads, self.finish = (torch.compile(f, dynamic=False, backend=backend) for f in (heads, finish))
        if h.is_cuda:
            self.replay = replayed(*captured(self.run, warm=3)[:2])

    def run(self):
        import torch
        import torch.nn.functional as F

        from kernels.latent_chain.reference import norm

        x, states, gqa = self.h, [], self.decoder.heads > self.decoder.kv_heads
        with torch.no_grad():
            for i in range(STEPS):
                rope, end = self.rope and tuple(r[i] for r in self.rope), PROMPT + i + 1
                for layer, (k_all, v_all) in zip(self.decoder.layers, self.kv):
                    q, k, v = self.heads(x, layer, self.decoder, rope)
                    k_all[:, :, end - 1], v_all[:, :, end - 1] = k, v
                    a = F.scaled_dot_product_attention(
                        q[:, :, None], k_all[:, :, :end], v_all[:, :, :end], enable_gqa=gqa
                    )
                    x = self.finish(x, a.flatten(1), layer, self.decoder)
                x = norm(x, self.decoder.norm, self.decoder)
                states.append(x)
        return torch.stack(states, 1)

    def call(self):
        """The chain as `LatentDecoder.run` serves it: loaded, run, and copied, as the next call writes into it."""
        self.h.copy_(self.start)
        for mine, theirs in zip(self.kv, self.past):
            for m, t in zip(mine, theirs):
                m[:, :, :PROMPT].copy_(t)
        states = self.replay().clone()
        self.longer = [tuple(x.clone() for x in pair) for pair in self.kv]
        return states


def hf_chain(shape: Shape, decoder, past, h) -> Callable:
    """The chain through transformers' own layers in eager mode, its cache growing, with the decoder's weights."""
    import torch
    import transformers as hf

    gpt2, qwen = decoder.kind == "layer", bool(decoder.layers[0].qk_norm)
    kind: Any = hf.GPT2Model if gpt2 else hf.Qwen3Model if qwen else hf.LlamaModel
    sizes: dict[str, Any]  # the families' names for them differ
    if gpt2:
        sizes = {"n_embd": shape.d, "n_inner": shape.inner, "n_layer": len(decoder.layers), "n_head": shape.heads,
                 "n_positions": 1024}  # fmt: skip
    else:
        sizes = {"hidden_size": shape.d, "intermediate_size": shape.inner, "num_hidden_layers": len(decoder.layers),
                 "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head,
                 "rms_norm_eps": decoder.eps}  # fmt: skip
    with h.device:  # where random weights, to be written over, are made at once: a host takes seconds for them
        lm = kind(kind.config_class(vocab_size=32, **sizes)).to(h.dtype).eval()
    blocks = lm.h if gpt2 else lm.layers
    with torch.no_grad():
        for block, layer in zip(blocks, decoder.layers):
            if gpt2:
                modules = [
                    block.ln_1,
                    block.attn.c_attn,
                    block.attn.c_proj,
                    block.ln_2,
                    block.mlp.c_fc,
                    block.mlp.c_proj,
                ]
            else:
                a, m = block.self_attn, block.mlp
                own = [a.q_norm, a.k_norm] if qwen else []
                modules = [block.input_layernorm, a.q_proj, a.k_proj, a.v_proj, *own, a.o_proj,
                           block.post_attention_layernorm, m.gate_proj, m.up_proj, m.down_proj]  # fmt: skip
            affines = [layer.norm_1, *layer.qkv, *layer.qk_norm, layer.out, layer.norm_2, *layer.up, layer.down]
            for module, (weight, bias) in zip(modules, affines, strict=True):
                module.weight.copy_(weight.t() if isinstance(module, torch.nn.Linear) else weight)
                if bias is not None:
                    module.bias.copy_(bias)
        if gpt2:
            lm.wpe.weight.zero_()

    @torch.no_grad()
    def run():
        cache = hf.DynamicCache()
        for i, (k, v) in enumerate(past):
            cache.update(k, v, i)
        x, states = h[:, None], []
        for i in range(STEPS):
            place = torch.full((len(h), 1), PROMPT + i, device=h.device)
            x = lm(inputs_embeds=x, past_key_values=cache, use_cache=True, position_ids=place).last_hidden_state
            states.append(x)
        return torch.cat(states, 1)

    return run


def loop_case(plan: Plan, device: str, layers: int | None) -> Case:
    import torch

    from kernels.graphs import captured
    from kernels.recurrent_loop import RecurrentLoop

    shape, batch, dtype = plan.shape, plan.batch, torch_dtype(plan.dtype)
    decoder = random_decoder(shape, device, dtype, layers=1)
    carry = (torch.randn(shape.d, shape.d, device=device, dtype=dtype) / shape.d**0.5).t()
    norm = (torch.ones(shape.d, device=device, dtype=dtype),) * 2
    constant = torch.randn(batch, 1, shape.d, device=device, dtype=dtype)
    rope = None
    if decoder.kind == "rms":
        rope = tuple(r[0][:, None] for r in rotations(shape, batch, device))
    fused, plain = (RecurrentLoop(decoder, carry, norm, impl=impl) for impl in ("triton", "torch"))

    def exact():
        double = in_dtype(decoder, torch.float64)
        loop = RecurrentLoop(double, carry.double(), in_dtype(norm, torch.float64), impl="torch")
        return loop.run(constant.double(), RECURRENCES, rope and in_dtype(rope, torch.float64))

    def run(loop):
        return loop.run(constant, RECURRENCES, rope)

    calls = {"triton": lambda: run(fused), "torch": lambda: run(plain)}
    if device == "cuda":
        calls["graph"] = replayed(*captured(lambda: run(plain), warm=3)[:2])
    weights = carry.numel() + sum(p.numel() for a in decoder.affines() for p in a if p is not None)
    moved = constant.element_size() * (weights + (RECURRENCES + 1) * constant.numel())
    return Case(calls, exact, moved, 2 * RECURRENCES * batch * weights, RECURRENCES)


ROW_OPS = (
    "vocab_mix_top_k",
    "step_kl",
    "shared_prefix_attention",
    "thought_feedback",
    "recurrent_block",
    "second_difference",
)


def row_case(plan: Plan, device: str, layers: int | None) -> Case:
    """An op on the hidden states of a decoding batch, or on the queries of that many rollouts of one prompt."""
    import torch

    from kernels.exit_criterion import second_difference, step_kl
    from kernels.recurrent_block import inject
    from kernels.shared_prefix_attention import shared_prefix_attention
    from kernels.thought_feedback import thought_feedback
    from kernels.vocab_mix import vocab_mix

    shape, n, dtype = plan.shape, plan.batch, torch_dtype(plan.dtype)
    d, head, kv_heads = shape.d, shape.head, shape.kv_heads
    states, table = (n, d), (shape.vocab, d)
    own = [(1, n, shape.heads, head), (2, 1, kv_heads, 512, head), (2, 1, n, kv_heads, 64, head)]
    known: dict[str, tuple[Callable, list[tuple[int, ...]], int, int]] = {
        "thought_feedback": (lambda h, w, b, impl: thought_feedback(h, (w, b), impl=impl), [states, (d,), (d,)], d, 0),
        "recurrent_block": (lambda s, c, w, impl: inject(s, c, w, impl=impl), [states, states, (d,)], 2 * d, 0),
        "second_difference": (second_difference, [states] * 3, 0, 0),
        "step_kl": (step_kl, [states, states, table], 0, 4 * d * shape.vocab),
        "vocab_mix": (vocab_mix, [states, table], d, 4 * d * shape.vocab),
        "vocab_mix_top_k": (partial(vocab_mix, top_k=TOP_K), [states, table], (TOP_K + 1) * d, 2 * d * shape.vocab),
        "shared_prefix_attention": (
            lambda q, prefix, own, impl: shared_prefix_attention(q, tuple(prefix), tuple(own), impl=impl),
            own, shape.heads * head, 4 * shape.heads * head * 576,
        ),
    }  # fmt: skip
    call, sizes, written, products = known[plan.op]

    def tensor(size):
        x = torch.randn(size, device=device, dtype=dtype)
        return x / d**0.5 if size == table else x

    sets = [[tensor(size) for size in sizes] for _ in range(SETS)]
    calls = {impl: [lambda x=x, impl=impl: first(call(*x, impl=impl)) for x in sets] for impl in ("triton", "torch")}
    moved = sets[0][0].element_size() * (sum(x.numel() for x in sets[0]) + n * written)
    return Case(calls, lambda: first(call(*(x.double() for x in sets[0]), impl="torch")), moved, n * products)


def logprob_case(plan: Plan, device: str, layers: int | None) -> Case:
    """Forward and backward over many rows; what must move is E twice forward and back, and its gradient."""
    import torch

    from kernels.linear_logprob import linear_logprob

    shape, n, dtype = plan.shape, plan.batch, torch_dtype(plan.dtype)
    h = torch.randn(n, shape.d, device=device, dtype=dtype, requires_grad=True)
    e = (torch.randn(shape.vocab, shape.d, device=device, dtype=dtype) / shape.d**0.5).requires_grad_()
    ids = torch.randint(shape.vocab, (n,), device=device)

    def loss(h, e, ids, impl):
        logp, entropy, _ = linear_logprob(h, e, ids, impl=impl)
        assert entropy is not None  # as it is where it is not declined
        return logp.sum() + 0.1 * entropy.sum()

    def call(impl: str):
        dh, de = torch.autograd.grad(loss(h, e, ids, impl), (h, e))
        return torch.cat([dh, de])

    def exact():
        of_e, of_h, size = torch.zeros(shape.vocab, shape.d, device=device), [], 1024
        for i in range(0, n, size):  # fp32 logits of all rows would not leave room for the rest
            rows, table = h[i : i + size].detach().float().requires_grad_(), e.detach().float().requires_grad_()
            dh, de = torch.autograd.grad(loss(rows, table, ids[i : i + size], "torch"), (rows, table))
            of_h.append(dh)
            of_e += de
        return torch.cat([*of_h, of_e])

    calls = {impl: lambda impl=impl: call(impl) for impl in ("triton", "torch")}
    moved = e.element_size() * (3 * e.numel() + 3 * h.numel())
    return Case(calls, exact, moved, 4 * 2 * n * e.numel())  # logits twice, and the two gradients


def first(out):
    return out[0] if isinstance(out, tuple) else out


def build(plan: Plan, device: str = "cuda", layers: int | None = None) -> Case:
    """The case of a planned row: its weights are on the device from here on."""
    whole = {"decode_step": chain_case, "recurrent_loop": loop_case, "linear_logprob": logprob_case}
    return whole.get(plan.op, row_case)(plan, device, layers)

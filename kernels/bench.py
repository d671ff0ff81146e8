"""How fast the kernels are on this GPU: correctness first, then time, memory and share of the floor.

`python -m kernels.bench` appends to `kernels/bench.csv` and writes `kernels/README.md` anew from it. The floor is the
bytes that must move, divided by this GPU's measured copy bandwidth; share = floor / median time. A chain of latent
steps is measured against three rivals: `hf`, the layers of transformers in eager mode; `graph`, plain torch with a
static cache, the whole chain in one CUDA graph; `compile`, the same with each layer compiled. A loop along the depth is
measured a recurrence, one layer at one position, against plain torch in one CUDA graph; its floor reads the weights
once for all recurrences.
"""

import argparse
import csv
import datetime
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

from kernels.budget import SHAPES, Shape, random_decoder

TABLE = Path(__file__).parent / "bench.csv"
BATCHES = (1, 16, 64)
STEPS, PROMPT = 8, 128  # latents in a chain, positions before them
RECURRENCES = 16
WARM = 3  # runs of a rival before it is captured
FIELDS = ["op", "shape", "batch", "dtype", "impl", "ms_20", "ms_50", "ms_80", "peak_mb", "floor_ms", "share", "error",
          "torch_error", "gpu", "torch", "triton", "date"]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One op at one size. `calls` by implementation, `exact` in fp64 or fp32, `moved` in bytes a call, `per` units."""

    op: str
    shape: str
    batch: int
    calls: dict[str, Callable]
    exact: Callable
    moved: int
    per: int = 1


def chain_case(shape: Shape, batch: int) -> Case:
    import torch

    from kernels.decode_step import LatentDecoder

    decoder = random_decoder(shape, "cuda", torch.bfloat16)
    kv = (batch, shape.kv_heads, PROMPT, shape.head)
    past = [tuple(torch.randn(kv, device="cuda", dtype=torch.bfloat16) for _ in "kv") for _ in decoder.layers]
    h = torch.randn(batch, shape.d, device="cuda", dtype=torch.bfloat16)
    rope = None
    if decoder.kind == "rms":
        angle = torch.randn(STEPS, batch, shape.head // 2, device="cuda").repeat(1, 1, 2)
        rope = angle.cos(), angle.sin()
    fused, plain = (LatentDecoder(decoder, impl) for impl in ("triton", "torch"))
    weights = sum(p.numel() * p.element_size() for a in decoder.affines() for p in a if p is not None)
    cache = sum(x.numel() * x.element_size() for pair in past for x in pair)

    def exact():
        double = in_dtype(decoder, torch.float64)
        ropes = rope and tuple(r.double() for r in rope)
        pairs = [tuple(x.double() for x in pair) for pair in past]
        return LatentDecoder(double, "torch").run(pairs, h.double(), None, STEPS, ropes=ropes)[0]

    calls = {
        "triton": lambda: fused.run(past, h, None, STEPS, ropes=rope)[0],
        "torch": lambda: plain.run(past, h, None, STEPS, ropes=rope)[0],
        "graph": StaticChain(decoder, past, h, rope, compiled=False).replay,
        "compile": StaticChain(decoder, past, h, rope, compiled=True).replay,
        "hf": hf_chain(shape, batch),
    }
    if batch <= 16:
        persistent = LatentDecoder(decoder, "triton", persistent=True)
        calls["persistent"] = lambda: persistent.run(past, h, None, STEPS, ropes=rope)[0]
    return Case("decode_step", shape.name, batch, calls, exact, STEPS * (weights + cache), STEPS)


def loop_case(shape: Shape, batch: int) -> Case:
    import torch

    from kernels.decode_step import captured
    from kernels.recurrent_loop import RecurrentLoop

    decoder = random_decoder(shape, "cuda", torch.bfloat16, layers=1)
    carry = (torch.randn(shape.d, shape.d, device="cuda", dtype=torch.bfloat16) / shape.d**0.5).t()
    norm = (torch.ones(shape.d, device="cuda", dtype=torch.bfloat16),) * 2
    constant = torch.randn(batch, 1, shape.d, device="cuda", dtype=torch.bfloat16)
    rope = None
    if decoder.kind == "rms":
        angle = torch.randn(batch, 1, shape.head // 2, device="cuda").repeat(1, 1, 2)
        rope = angle.cos(), angle.sin()
    fused, plain = (RecurrentLoop(decoder, carry, norm, impl=impl) for impl in ("triton", "torch"))

    def exact():
        loop = RecurrentLoop(
            in_dtype(decoder, torch.float64), carry.double(), in_dtype(norm, torch.float64), impl="torch"
        )
        return loop.run(constant.double(), RECURRENCES, rope and tuple(r.double() for r in rope))

    run = lambda loop: loop.run(constant, RECURRENCES, rope)  # noqa: E731
    graph, out = captured(lambda: run(plain), WARM)
    calls = {"triton": lambda: run(fused), "torch": lambda: run(plain), "graph": lambda: (graph.replay(), out)[1]}
    weights = carry.numel() + sum(p.numel() for a in decoder.affines() for p in a if p is not None)
    moved = 2 * (weights + (RECURRENCES + 1) * constant.numel())
    return Case("recurrent_loop", shape.name, batch, calls, exact, moved, RECURRENCES)


def in_dtype(value, dtype):
    """The same decoder, or the same tuple of tensors, in another dtype."""
    import torch

    if isinstance(value, tuple):
        return tuple(in_dtype(v, dtype) for v in value)
    if is_dataclass(value):
        return replace(value, **{f.name: in_dtype(getattr(value, f.name), dtype) for f in fields(value)})
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


class StaticChain:
    """The honest rival: plain torch, static cache, the whole chain one graph; each layer compiled or not."""

    def __init__(self, decoder, past, h, rope, compiled: bool):
        import torch

        from kernels.decode_step import captured

        self.decoder, self.h, self.rope = decoder, h, rope
        b, heads, size, d = past[0][0].shape
        self.kv = [tuple(x.new_zeros(b, heads, size + STEPS, d) for x in pair) for pair in past]
        for mine, theirs in zip(self.kv, past):
            for m, t in zip(mine, theirs):
                m[:, :, :size] = t
        self.masks = [torch.arange(size + STEPS, device="cuda") <= size + i for i in range(STEPS)]
        self.slots = [torch.tensor([size + i], device="cuda") for i in range(STEPS)]
        self.layer = torch.compile(static_layer, dynamic=False) if compiled else static_layer
        self.graph, self.out = captured(self.run, WARM)

    def run(self):
        import torch

        from kernels.latent_chain.reference import norm

        x, states = self.h, []
        for i in range(STEPS):
            rope = self.rope and tuple(r[i].to(x.dtype) for r in self.rope)
            for layer, (k, v) in zip(self.decoder.layers, self.kv):
                x = self.layer(x, layer, self.decoder, k, v, self.slots[i], rope, self.masks[i])
            x = norm(x, self.decoder.norm, self.decoder)
            states.append(x)
        return torch.stack(states, 1)

    def replay(self):
        self.graph.replay()
        return self.out


def static_layer(x, layer, decoder, k_cache, v_cache, slot, rope, mask):
    """One layer at one position over a static cache, written at `slot`."""
    import torch.nn.functional as F

    from kernels.latent_chain.reference import finish, heads

    q, k, v = heads(x, layer, decoder, rope)
    k_cache.index_copy_(2, slot, k[:, :, None])
    v_cache.index_copy_(2, slot, v[:, :, None])
    a = F.scaled_dot_product_attention(
        q[:, :, None], k_cache, v_cache, mask[None], enable_gqa=decoder.heads > decoder.kv_heads
    )
    return finish(x, a.flatten(1), layer, decoder)


def hf_chain(shape: Shape, batch: int) -> Callable:
    """The chain through transformers' own layers in eager mode, its cache growing; random weights of the same sizes."""
    import torch
    import transformers as hf

    if shape.name == "gpt2":
        lm = hf.GPT2Model(hf.GPT2Config())
    else:
        family = hf.Qwen3Config if shape.name.startswith("qwen3") else hf.LlamaConfig
        config = family(
            vocab_size=32, hidden_size=shape.d, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head,
        )  # fmt: skip
        lm = hf.Qwen3Model(config) if shape.name.startswith("qwen3") else hf.LlamaModel(config)
    lm = lm.to("cuda", torch.bfloat16).eval()
    x = torch.randn(batch, PROMPT, shape.d, device="cuda", dtype=torch.bfloat16)

    with torch.no_grad():
        read = lm(inputs_embeds=x, use_cache=True).past_key_values
    prompt = [(layer.keys, layer.values) for layer in read.layers]

    @torch.no_grad()
    def run() -> None:  # other weights: nothing to compare
        cache = hf.DynamicCache()
        for i, (k, v) in enumerate(prompt):
            cache.update(k, v, i)
        h = x[:, -1:]
        for _ in range(STEPS):
            h = lm(inputs_embeds=h, past_key_values=cache, use_cache=True).last_hidden_state

    return run


def row_case(op: str, shape: Shape, n: int) -> Case:
    """An op on the hidden states of a decoding batch, or on the queries of that many rollouts of one prompt."""
    import torch

    from kernels.exit_criterion import second_difference, step_kl
    from kernels.recurrent_block import inject
    from kernels.shared_prefix_attention import shared_prefix_attention
    from kernels.thought_feedback import thought_feedback
    from kernels.vocab_mix import vocab_mix

    def t(*size: int):
        return torch.randn(size, device="cuda", dtype=torch.bfloat16)

    def attention(q, prefix, own, impl):
        return shared_prefix_attention(q, tuple(prefix), tuple(own), impl=impl)

    def rms_inject(s, constant, weight, impl):
        return inject(s, constant, weight, impl=impl)

    def feedback(h, weight, bias, impl):
        return thought_feedback(h, (weight, bias), impl=impl)

    d, head, kv_heads = shape.d, shape.head, shape.kv_heads
    match op:
        case "thought_feedback":
            call, tensors, written = feedback, [t(n, d), t(d), t(d)], n * d
        case "recurrent_block":
            call, tensors, written = rms_inject, [t(n, d), t(n, d), t(d)], 2 * n * d
        case "second_difference":
            call, tensors, written = second_difference, [t(n, d), t(n, d), t(n, d)], 0
        case "step_kl":
            call, tensors, written = step_kl, [t(n, d), t(n, d), t(shape.vocab, d) / d**0.5], 0
        case "vocab_mix":
            call, tensors, written = vocab_mix, [t(n, d), t(shape.vocab, d) / d**0.5], n * d
        case _:
            tensors = [t(1, n, shape.heads, head), t(2, 1, kv_heads, 512, head), t(2, 1, n, kv_heads, 64, head)]
            call, written = attention, tensors[0].numel()
    calls = {impl: lambda impl=impl: call(*tensors, impl=impl) for impl in ("triton", "torch")}
    moved = 2 * (sum(x.numel() for x in tensors) + written)
    return Case(op, shape.name, n, calls, lambda: call(*(x.double() for x in tensors), impl="torch"), moved)


def logprob_case(shape: Shape, n: int) -> Case:
    """Forward and backward over many rows; what must move is E twice forward and back, and its gradient."""
    import torch

    from kernels.linear_logprob import linear_logprob

    h = torch.randn(n, shape.d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    e = (torch.randn(shape.vocab, shape.d, device="cuda", dtype=torch.bfloat16) / shape.d**0.5).requires_grad_()
    ids = torch.randint(shape.vocab, (n,), device="cuda")

    def call(impl: str):
        logp, entropy, _ = linear_logprob(h, e, ids, impl=impl)
        return torch.autograd.grad(logp.sum() + 0.1 * entropy.sum(), (h, e))[0]

    def exact():
        parts = []
        for i in range(0, n, 1024):  # fp32 logits of all rows would not leave room for the rest
            rows = h[i : i + 1024].detach().float().requires_grad_()
            logp, entropy, _ = linear_logprob(rows, e.detach().float(), ids[i : i + 1024], impl="torch")
            parts.append(torch.autograd.grad(logp.sum() + 0.1 * entropy.sum(), rows)[0])
        return torch.cat(parts)

    calls = {impl: lambda impl=impl: call(impl) for impl in ("triton", "torch")}
    return Case("linear_logprob", shape.name, n, calls, exact, 2 * (3 * e.numel() + 3 * h.numel()))


ROW_OPS = (
    "thought_feedback",
    "recurrent_block",
    "second_difference",
    "step_kl",
    "vocab_mix",
    "shared_prefix_attention",
)


def planned() -> list[tuple[str, Shape, int]]:
    """What a complete table holds: (op, shape, batch)."""
    rows = [
        (op, shape, batch)
        for shape in SHAPES
        for batch in BATCHES
        for op in ("decode_step", "recurrent_loop", *ROW_OPS)
    ]
    return rows + [("linear_logprob", shape, 8192) for shape in SHAPES]


def build(op: str, shape: Shape, batch: int) -> Case:
    """The case of a planned row: its weights are on the GPU from here on."""
    whole = {"decode_step": chain_case, "recurrent_loop": loop_case, "linear_logprob": logprob_case}
    return whole[op](shape, batch) if op in whole else row_case(op, shape, batch)


def measure(case: Case, bandwidth: float, facts: dict) -> list[dict]:
    """One row an implementation. Raises RuntimeError if a kernel is wrong: then nothing of it is timed."""
    import torch
    from triton.testing import do_bench

    want = first(case.exact())
    errors = {}
    for name, call in case.calls.items():
        got = first(call())
        errors[name] = None if got is None else float((got.double() - want.double()).norm() / want.double().norm())
    limit = max(2 * errors["torch"], 1e-5)
    if not errors["triton"] <= limit:
        raise RuntimeError(
            f"{case.op} {case.shape} batch {case.batch}: error {errors['triton']:.2e}, allowed {limit:.2e}"
        )
    rows = []
    for name, call in case.calls.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        low, mid, high = (ms / case.per for ms in do_bench(call, quantiles=[0.2, 0.5, 0.8]))
        floor = 1000 * case.moved / case.per / bandwidth
        error = "" if errors[name] is None else f"{errors[name]:.2e}"
        rows.append({
            "op": case.op, "shape": case.shape, "batch": case.batch, "dtype": "bf16", "impl": name,
            "ms_20": f"{low:.4f}", "ms_50": f"{mid:.4f}", "ms_80": f"{high:.4f}", "peak_mb": f"{peak / 1e6:.1f}",
            "floor_ms": f"{floor:.4f}", "share": f"{floor / mid:.3f}", "error": error,
            "torch_error": f"{errors['torch']:.2e}", **facts,
        })  # fmt: skip
    return rows


def first(out):
    return out[0] if isinstance(out, tuple) else out


def copy_bandwidth() -> float:
    """Bytes a second that a large copy moves on this GPU, read and written."""
    import torch
    from triton.testing import do_bench

    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / (do_bench(lambda: y.copy_(x), quantiles=[0.5]) / 1000)


def read() -> list[dict]:
    """The rows measured so far; of a repeated measurement the last counts."""
    if not TABLE.exists():
        return []
    with TABLE.open() as f:
        rows = {tuple(r[k] for k in ("op", "shape", "batch", "impl", "gpu")): r for r in csv.DictReader(f)}
    return list(rows.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--ops", nargs="*", help="only these ops")
    parser.add_argument("--shapes", nargs="*", help="only these models' sizes")
    parser.add_argument("--readme", action="store_true", help="only write kernels/README.md anew")
    asked = parser.parse_args()
    from kernels import report

    if asked.readme:
        report.write()
        return 0
    import torch

    if not torch.cuda.is_available():
        print("error: there is no GPU to measure on", file=sys.stderr)
        return 2
    import triton

    facts = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    bandwidth = copy_bandwidth()
    print(f"{facts['gpu']}: a copy moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    failed = 0
    for op, shape, batch in planned():
        if (asked.ops and op not in asked.ops) or (asked.shapes and shape.name not in asked.shapes):
            continue
        try:
            rows = measure(build(op, shape, batch), bandwidth, facts)
        except (RuntimeError, ValueError, triton.TritonError) as e:
            print(f"FAILED {e}", flush=True)
            failed += 1
            continue
        new = not TABLE.exists()
        with TABLE.open("a", newline="") as f:
            writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        for r in rows:
            print(
                f"{r['op']:24} {r['shape']:14} B={r['batch']:<5} {r['impl']:8} {r['ms_50']} ms  share {r['share']}",
                flush=True,
            )
        torch.cuda.empty_cache()
    report.write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

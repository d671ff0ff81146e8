"""How fast the kernels are on this GPU: correctness first, then time, memory and share of the floor.

    python -m kernels.bench --compile-only    # first, in parallel: what the second half would wait for
    python -m kernels.bench                   # one case after the other, each a process with a time limit

appends to `kernels/bench.csv` and writes `kernels/README.md` anew from it. The floor is the larger of two times: the
bytes that must move over this GPU's measured copy bandwidth, and the products over its measured bf16 rate; share is
floor / median time. No arm is timed whose result is wrong. A chain of latent steps is measured as `Backbone.chain`
calls it (load the prompt's cache, run, copy the results out) against three rivals on the same weights and cache that
do the same: `hf`, the layers of transformers in eager mode; `graph`, plain torch with a static cache, the whole chain
in one CUDA graph; `compile`, the same with what surrounds attention compiled by Inductor's defaults. Both graphs attend
slices of the cache without a mask. A loop along the depth is measured a recurrence, one layer at one position; its
floor reads the weights once for all recurrences. Ops on rows are timed in a graph of several calls on different inputs,
so that neither launches nor the cache are measured.
"""

import argparse
import csv
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

from kernels.budget import SHAPES, Shape, random_decoder

TABLE = Path(__file__).parent / "bench.csv"
BATCHES = (1, 4, 16, 64)
STEPS, PROMPT = 8, 128  # latents in a chain, positions before them
RECURRENCES = 16
SETS = 4  # of inputs of an op on rows
LIMIT = 90  # seconds a case may take
WRONG = 2.0  # times torch's error, both against fp64
FIELDS = ["op", "shape", "batch", "dtype", "impl", "ms_20", "ms_50", "ms_80", "peak_mb", "floor_ms", "share", "error",
          "torch_error", "gpu", "torch", "triton", "date"]  # fmt: skip
TINY = Shape("tiny", 32, 40, 2, 4, 2, 8, 48)  # of a dry run


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

    calls: dict[str, Callable | list[Callable]]
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
    return plans + [Plan(op, shape, batch) for op in ROW_OPS for shape in SHAPES for batch in (1, 64)]


def chain_case(plan: Plan, device: str, layers: int | None) -> Case:
    import torch

    from kernels.decode_step import LatentDecoder

    shape, batch, dtype = plan.shape, plan.batch, torch_dtype(plan.dtype)
    decoder = random_decoder(shape, device, dtype, layers)
    kv = (batch, shape.kv_heads, PROMPT, shape.head)
    past = [tuple(torch.randn(kv, device=device, dtype=dtype) for _ in "kv") for _ in decoder.layers]
    h = torch.randn(batch, shape.d, device=device, dtype=dtype)
    rope = None if decoder.kind == "layer" else rotations(shape, batch, device)
    fused, plain = (LatentDecoder(decoder, impl) for impl in ("triton", "torch"))

    def exact():
        double = in_dtype(decoder, torch.float64)
        pairs = [tuple(x.double() for x in pair) for pair in past]
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
    if is_dataclass(value):
        return replace(value, **{f.name: in_dtype(getattr(value, f.name), dtype) for f in fields(value)})
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


class StaticChain:
    """Plain torch, static cache, the whole chain one graph; what surrounds attention compiled or not."""

    def __init__(self, decoder, past, h, rope, compiled: bool):
        import torch

        from kernels.decode_step import captured
        from kernels.latent_chain.reference import finish, heads

        self.decoder, self.past, self.start = decoder, past, h
        self.rope = rope and in_dtype(rope, h.dtype)
        self.h = torch.empty_like(h)
        b, kv_heads, size, d = past[0][0].shape
        self.kv = [tuple(x.new_zeros(b, kv_heads, size + STEPS, d) for x in pair) for pair in past]
        self.heads, self.finish, self.replay = heads, finish, self.run
        if compiled:
            torch._dynamo.reset()  # or arms share one limit of recompilations
            backend = "inductor" if h.is_cuda else "eager"
            self.heads, self.finish = (torch.compile(f, dynamic=False, backend=backend) for f in (heads, finish))
        if h.is_cuda:
            graph, self.out = captured(self.run, warm=3)
            self.replay = lambda: (graph.replay(), self.out)[1]

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

    n = len(decoder.layers)
    if decoder.kind == "layer":
        config = hf.GPT2Config(
            vocab_size=32, n_embd=shape.d, n_inner=shape.inner, n_layer=n, n_head=shape.heads, n_positions=1024
        )
        lm = hf.GPT2Model(config)
    else:
        family = (hf.Qwen3Config, hf.Qwen3Model) if decoder.layers[0].qk_norm else (hf.LlamaConfig, hf.LlamaModel)
        config = family[0](
            vocab_size=32, hidden_size=shape.d, intermediate_size=shape.inner, num_hidden_layers=n,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head,
            rms_norm_eps=decoder.eps,
        )  # fmt: skip
        lm = family[1](config)
    lm = lm.to(h.device, h.dtype).eval()
    blocks = lm.h if decoder.kind == "layer" else lm.layers
    with torch.no_grad():
        for block, layer in zip(blocks, decoder.layers):
            if decoder.kind == "layer":
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
                own = [a.q_norm, a.k_norm] if layer.qk_norm else []
                modules = [block.input_layernorm, a.q_proj, a.k_proj, a.v_proj, *own, a.o_proj,
                           block.post_attention_layernorm, m.gate_proj, m.up_proj, m.down_proj]  # fmt: skip
            affines = [layer.norm_1, *layer.qkv, *layer.qk_norm, layer.out, layer.norm_2, *layer.up, layer.down]
            for module, (weight, bias) in zip(modules, affines, strict=True):
                module.weight.copy_(weight.t() if isinstance(module, torch.nn.Linear) else weight)
                if bias is not None:
                    module.bias.copy_(bias)
        if decoder.kind == "layer":
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

    from kernels.decode_step import captured
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
        graph, out = captured(lambda: run(plain), warm=3)
        calls["graph"] = lambda: (graph.replay(), out)[1]
    weights = carry.numel() + sum(p.numel() for a in decoder.affines() for p in a if p is not None)
    moved = constant.element_size() * (weights + (RECURRENCES + 1) * constant.numel())
    return Case(calls, exact, moved, 2 * RECURRENCES * batch * weights, RECURRENCES)


ROW_OPS = (
    "vocab_mix",
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
    call, sizes, written, products = {
        "thought_feedback": (lambda h, w, b, impl: thought_feedback(h, (w, b), impl=impl), [states, (d,), (d,)], d, 0),
        "recurrent_block": (lambda s, c, w, impl: inject(s, c, w, impl=impl), [states, states, (d,)], 2 * d, 0),
        "second_difference": (second_difference, [states] * 3, 0, 0),
        "step_kl": (step_kl, [states, states, table], 0, 4 * d * shape.vocab),
        "vocab_mix": (vocab_mix, [states, table], d, 4 * d * shape.vocab),
        "shared_prefix_attention": (
            lambda q, prefix, own, impl: shared_prefix_attention(q, tuple(prefix), tuple(own), impl=impl),
            own, shape.heads * head, 4 * shape.heads * head * 576,
        ),
    }[plan.op]  # fmt: skip

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


def errors(case: Case) -> dict[str, float]:
    """Each arm's relative error; compiles what it needs."""
    want, found = case.exact(), {}
    for name, call in case.calls.items():
        got = (call[0] if isinstance(call, list) else call)()
        found[name] = float((got.double() - want.double()).norm() / want.double().norm())
    return found


def timed(call: Callable | list[Callable]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile of milliseconds a call."""
    from triton.testing import do_bench

    from kernels.decode_step import captured

    if not isinstance(call, list):
        return tuple(do_bench(call, quantiles=[0.2, 0.5, 0.8]))
    graph, _ = captured(lambda: [c() for c in call], warm=3)
    return tuple(ms / len(call) for ms in do_bench(graph.replay, quantiles=[0.2, 0.5, 0.8]))


def measure(plan: Plan) -> tuple[list[dict], list[str]]:
    """One row an implementation that is right, and what is wrong with the others."""
    import torch
    import triton

    case, bandwidth, rate = build(plan), copy_bandwidth(), product_rate()
    found = errors(case)
    limit = max(WRONG * found["torch"], 1e-5)
    floor = 1000 * max(case.moved / bandwidth, case.products / rate if plan.dtype == "bf16" else 0) / case.per
    rows, wrong = [], []
    for name, call in case.calls.items():
        if not found[name] <= limit:
            wrong.append(f"{plan.name} {name}: error {found[name]:.2e}, allowed {limit:.2e}")
            continue
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = (call[0] if isinstance(call, list) else call)()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del out
        low, mid, high = (ms / case.per for ms in timed(call))
        rows.append({
            "op": plan.op, "shape": plan.shape.name, "batch": plan.batch, "dtype": plan.dtype, "impl": name,
            "ms_20": f"{low:.4f}", "ms_50": f"{mid:.4f}", "ms_80": f"{high:.4f}", "peak_mb": f"{peak / 1e6:.1f}",
            "floor_ms": f"{floor:.4f}", "share": f"{floor / mid:.3f}", "error": f"{found[name]:.2e}",
            "torch_error": f"{found['torch']:.2e}", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
            "triton": triton.__version__, "date": datetime.date.today().isoformat(),
        })  # fmt: skip
    return rows, wrong


def copy_bandwidth() -> float:
    """Bytes a second that a large copy moves on this GPU, read and written."""
    import torch
    from triton.testing import do_bench

    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / (do_bench(lambda: y.copy_(x), warmup=5, rep=20, quantiles=[0.5]) / 1000)


def product_rate() -> float:
    """Floating-point operations a second of a large bf16 product on this GPU."""
    import torch
    from triton.testing import do_bench

    x = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    return 2 * 8192**3 / (do_bench(lambda: x @ x, warmup=5, rep=20, quantiles=[0.5]) / 1000)


def read() -> list[dict]:
    """The rows measured so far; of a repeated measurement the last counts."""
    if not TABLE.exists():
        return []
    with TABLE.open() as f:
        rows = {tuple(r[k] for k in ("op", "shape", "batch", "dtype", "impl", "gpu")): r for r in csv.DictReader(f)}
    return list(rows.values())


def one(plan: Plan, compile_only: bool) -> int:
    """A case in this process: measured and written down, or only compiled, on two layers."""
    if compile_only:  # many at a time on one GPU: with few rows
        errors(build(replace(plan, batch=min(plan.batch, 512)), layers=2))
        return 0
    rows, wrong = measure(plan)
    new = not TABLE.exists()
    with TABLE.open("a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for r in rows:
        print(f"{plan.name:40} {r['impl']:8} {r['ms_50']} ms  share {r['share']}", flush=True)
    for line in wrong:
        print(f"WRONG {line}", flush=True)
    return 1 if wrong else 0


def each(plans: list[Plan], compile_only: bool, workers: int, seconds: float) -> int:
    """A process for each case. Returns how many failed, hung, or were not begun in `seconds`."""
    end = time.monotonic() + seconds

    def go(i: int) -> bool:
        if time.monotonic() > end:
            print(f"NOT BEGUN {plans[i].name}", flush=True)
            return True
        command = [sys.executable, "-m", "kernels.bench", "--one", str(planned().index(plans[i]))]
        try:
            done = subprocess.run(
                command + ["--compile-only"] * compile_only,
                stdout=None,
                stderr=subprocess.PIPE,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            print(f"FAILED {plans[i].name}: not done after {LIMIT} s", flush=True)
            return True
        if done.returncode:
            print(f"FAILED {plans[i].name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return bool(done.returncode)

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(go, range(len(plans))))


def dry_run() -> int:
    """Every case at a tiny size on the CPU, its kernels interpreted, nothing timed: what fails here fails there."""
    global STEPS, PROMPT, RECURRENCES
    STEPS, PROMPT, RECURRENCES, failed = 2, 16, 2, 0
    for op in dict.fromkeys(p.op for p in planned()):
        for shape in (replace(TINY, name="gpt2", kv_heads=4), replace(TINY, name="qwen3-0.6b")):
            case = build(Plan(op, shape, 2, "fp32"), "cpu")
            found = errors(case)
            wrong = {name: e for name, e in found.items() if not e <= max(WRONG * found["torch"], 1e-5)}
            failed += bool(wrong)
            print(f"{op} {shape.name}: {', '.join(f'{k} {v:.0e}' for k, v in found.items())}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--ops", nargs="*", help="only these ops")
    parser.add_argument("--shapes", nargs="*", help="only these models' sizes")
    parser.add_argument("--compile-only", action="store_true", help="fill the compilers' caches, in parallel")
    parser.add_argument("--seconds", type=float, default=300, help="begin no case after so long")
    parser.add_argument("--readme", action="store_true", help="only write kernels/README.md anew")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on the CPU, interpreted, nothing timed")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.readme:
        from kernels import report

        report.write()
        return 0
    if asked.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        return 1 if dry_run() else 0
    import torch

    if not torch.cuda.is_available():
        print("error: there is no GPU to measure on", file=sys.stderr)
        return 2
    if asked.one is not None:
        return one(planned()[asked.one], asked.compile_only)
    plans = [
        p for p in planned()
        if (not asked.ops or p.op in asked.ops) and (not asked.shapes or p.shape.name in asked.shapes)
    ]  # fmt: skip
    failed = each(plans, asked.compile_only, os.cpu_count() or 1 if asked.compile_only else 1, asked.seconds)
    if not asked.compile_only:
        from kernels import report

        report.write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What every kernel costs on each architecture, found by compiling it, without a GPU.

`python -m kernels.budget` compiles what the ops would launch at the shapes of real models, writes registers, spilled
bytes and shared memory to `kernels/budget.csv`, and exits with 1 if a kernel spills or does not fit; `--ops` and
`--archs` confine it, and leave the table's other rows. With `--check` it writes nothing and exits with 1 if anything
got worse than the table; under another Triton than the table's only if the table lacks a kernel.

The launches are taken from the ops themselves: for each architecture they run on tensors without data, supposed to be
on such a GPU, and where a kernel would start, its arguments are noted instead.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from kernels import dispatch

TABLE = Path(__file__).parent / "budget.csv"
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
PROGRAMS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}  # multiprocessors
SHARED = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KiB a block may have
NOT_AMD = {"logits_kernel", "weigh_kernel"}  # of vocab_mix: torch serves there what they would
FIELDS = ["op", "kernel", "shapes", "arch", "registers", "spilled", "shared"]


@dataclass(frozen=True)
class Shape:
    """A model's sizes: width, vocabulary, layers, heads, K/V heads, a head's width, MLP width."""

    name: str
    d: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    inner: int


SHAPES = [
    Shape("gpt2", 768, 50257, 12, 12, 12, 64, 3072),
    Shape("qwen3-0.6b", 1024, 151936, 28, 16, 8, 128, 3072),
    Shape("llama-3.2-1b", 2048, 128256, 16, 32, 8, 64, 8192),
]


def random_decoder(shape: Shape, device, dtype, layers: int | None = None):
    """A decoder of a model's sizes with random weights, laid out in memory as `transformers` has them."""
    import torch

    from kernels.decoder import Act, Decoder, Kind, Layer

    gpt2, d = shape.name == "gpt2", shape.d

    def matrix(rows: int, cols: int, scale: float = 1.0):
        size = (rows, cols) if gpt2 else (cols, rows)  # Conv1D keeps (in, out), Linear (out, in)
        w = scale * torch.randn(size, device=device, dtype=dtype) / rows**0.5
        return (w, torch.zeros(cols, device=device, dtype=dtype)) if gpt2 else (w.t(), None)

    def norm(size: int):
        ones = torch.ones(size, device=device, dtype=dtype)
        return ones, torch.zeros_like(ones) if gpt2 else None

    small = (2 * shape.layers) ** -0.5  # as models are initialised: a stack that amplifies rounding checks nothing
    sizes = [shape.heads * shape.head, shape.kv_heads * shape.head, shape.kv_heads * shape.head]
    made = [
        Layer(
            norm_1=norm(d),
            qkv=(matrix(d, sum(sizes)),) if gpt2 else tuple(matrix(d, n) for n in sizes),
            qk_norm=(norm(shape.head), norm(shape.head)) if shape.name.startswith("qwen3") else (),
            out=matrix(sizes[0], d, small),
            norm_2=norm(d),
            up=tuple(matrix(d, shape.inner) for _ in range(1 if gpt2 else 2)),
            down=matrix(shape.inner, d, small),
        )
        for _ in range(layers or shape.layers)
    ]
    kind: Kind = "layer" if gpt2 else "rms"
    act: Act = "gelu_tanh" if gpt2 else "silu"
    eps = 1e-5 if gpt2 else 1e-6
    return Decoder(tuple(made), norm(d), shape.heads, shape.kv_heads, shape.head, kind, eps, act)


def cases(shape: Shape, arch: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each op at a model's sizes, as it is called in decoding (B = 1, 64) and in training, in bf16."""
    import torch

    from kernels.decode_step import LatentDecoder
    from kernels.exit_criterion import second_difference, step_kl
    from kernels.linear_logprob import linear_logprob
    from kernels.recurrent_block import inject
    from kernels.recurrent_loop import RecurrentLoop
    from kernels.recurrent_loop.triton import Chip
    from kernels.shared_prefix_attention import shared_prefix_attention
    from kernels.thought_feedback import thought_feedback
    from kernels.vocab_mix import vocab_mix

    def t(*size: int, dtype=torch.bfloat16, grad=False):
        return torch.empty(*size, dtype=dtype, device="meta", requires_grad=grad)

    def logprob(n: int) -> None:
        logp, entropy, _ = linear_logprob(
            t(n, shape.d, grad=True), t(shape.vocab, shape.d, grad=True), t(n, dtype=torch.int64), impl="triton"
        )
        assert entropy is not None  # as it is where it is not declined
        (logp.sum() + entropy.sum()).backward()

    def steps(n: int, dtype) -> None:
        decoder = random_decoder(shape, "meta", dtype, layers=2)
        past = [(t(n, shape.kv_heads, 128, shape.head, dtype=dtype),) * 2] * 2
        rope = None if shape.name == "gpt2" else (t(1, n, shape.head, dtype=torch.float32),) * 2
        LatentDecoder(decoder, "triton").run(past, t(n, shape.d, dtype=dtype), None, 1, ropes=rope)

    def recur() -> None:
        decoder = random_decoder(shape, "meta", torch.bfloat16, layers=1)
        chip = Chip(PROGRAMS[arch], 0 if arch == "gfx942" else 1024 * SHARED[arch])
        rope = None if shape.name == "gpt2" else (t(1, 64, shape.head),) * 2
        loop = RecurrentLoop(decoder, t(shape.d, shape.d).t(), (t(shape.d), t(shape.d)), impl="triton", chip=chip)
        loop.run(t(1, 64, shape.d), 1, rope)

    yield "recurrent_loop", recur
    for dtype in (torch.bfloat16, torch.float32):
        for n in (1, 4, 16, 64) if arch != "gfx942" else ():
            yield "decode_step", partial(steps, n, dtype)

    def shared(n: int) -> None:
        kv = (t(1, shape.kv_heads, 256, shape.head),) * 2
        own = (t(1, n, shape.kv_heads, 32, shape.head),) * 2
        shared_prefix_attention(t(1, n, shape.heads, shape.head), kv, own, impl="triton")

    def injected() -> None:
        x, w = t(4096, shape.d, grad=True), t(shape.d, grad=True)
        out = inject(x, x, w, w if shape.name == "gpt2" else None, impl="triton")
        (out[0] + out[1]).sum().backward()

    yield "recurrent_block", injected
    for n in (8, 64):
        yield "shared_prefix_attention", partial(shared, n)
    for n in (16, 8192):
        yield "linear_logprob", partial(logprob, n)
    for n in (1, 64):
        h, e = t(n, shape.d), t(shape.vocab, shape.d)
        norm = (t(shape.d), t(shape.d) if shape.name == "gpt2" else None)
        yield "thought_feedback", partial(thought_feedback, h, norm, impl="triton")
        gate, square = (h, h, h, t(shape.d)), (t(shape.d, shape.d).t(), None)
        yield "thought_feedback", partial(thought_feedback, h, None, 0, square, gate, impl="triton")
        yield "exit_criterion", partial(second_difference, h, h, h, impl="triton")
        yield "exit_criterion", partial(step_kl, h, h, e, impl="triton")
        yield "vocab_mix", partial(vocab_mix, h, e, top_k=16, impl="triton")
    for n in (1, 2, 16, 64):
        h, e = t(n, shape.d), t(shape.vocab, shape.d)
        noise = t(n, shape.vocab, dtype=torch.float32)
        yield "vocab_mix", partial(vocab_mix, h, e, impl="triton")
        yield "vocab_mix", partial(vocab_mix, h, e, torch.empty_like(e), noise_NV=noise, impl="triton")
    h, e = (t(*size, dtype=torch.float32) for size in ((1, shape.d), (shape.vocab, shape.d)))
    yield "vocab_mix", partial(vocab_mix, h, e, impl="triton")


@dataclass(frozen=True)
class Launch:
    """One kernel as it would be compiled: types and constants of its arguments, in order."""

    op: str
    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int], ...]


@contextmanager
def captured(found: list):
    """Within, no kernel starts; (kernel, arguments) are appended to `found`."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **kwargs: found.append((self, args, kwargs))
    try:
        yield
    finally:
        JITFunction.run = run


def launches() -> dict[tuple[Launch, str], list[str]]:
    """Every distinct compilation that the cases need, with its architecture, and the shapes that need it."""
    needed: dict[tuple[Launch, str], list[str]] = {}
    for shape, arch in product(SHAPES, TARGETS):
        with dispatch.supposed(int(arch[3:]) if arch.startswith("sm_") else 0):
            for op, call in cases(shape, arch):
                found: list = []
                with captured(found):
                    call()
                for launch in (describe(op, *each) for each in found):
                    if arch == "gfx942" and launch.kernel in NOT_AMD:
                        continue
                    names = needed.setdefault((launch, arch), [])
                    if shape.name not in names:
                        names.append(shape.name)
    return needed


def describe(op: str, kernel, args: tuple, kwargs: dict) -> Launch:
    """What Triton would specialise a launch on: types, constants, divisibility by 16."""
    import torch
    from triton.runtime.jit import type_canonicalisation_dict as short

    values = dict(zip(kernel.arg_names, args)) | {k: v for k, v in kwargs.items() if k in kernel.arg_names}
    constexprs = {p.name for p in kernel.params if p.is_constexpr}
    fixed = {p.name for p in kernel.params if p.do_not_specialize}
    signature, constants, divisible = [], [], []
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        plain = name in fixed
        if name in constexprs or value is None or (isinstance(value, int) and value == 1 and not plain):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, "*" + short[str(value.dtype).split(".")[-1]]))
            divisible.append(i)
        elif isinstance(value, int):
            signature.append((name, "i32"))
            if value % 16 == 0 and not plain:
                divisible.append(i)
        else:
            signature.append((name, "fp32"))
    options = tuple(sorted((k, v) for k, v in kwargs.items() if k in ("num_warps", "num_stages", "maxnreg")))
    module = kernel.fn.__module__
    return Launch(op, module, kernel.fn.__name__, tuple(signature), tuple(constants), tuple(divisible), options)


def compiled(launch: Launch, arch: str) -> dict:
    """Registers a thread, spilled bytes (NVIDIA: stack) and shared memory of one kernel on one architecture."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    attrs = {(i,): [["tt.divisibility", 16]] for i in launch.divisible}
    source = ASTSource(kernel, dict(launch.signature), dict(launch.constants), attrs)
    options = {k: v for k, v in launch.options if k != "maxnreg" or not arch.startswith("gfx")}
    binary = triton.compile(source, target=GPUTarget(*TARGETS[arch]), options=options)
    found = {"shared": binary.metadata.shared}
    if arch.startswith("gfx"):
        text = binary.asm["amdgcn"]
        count = lambda key: int(re.findall(rf"\.{key}:\s*(\d+)", text)[0])  # noqa: E731
        return found | {"registers": count("vgpr_count"), "spilled": 4 * count("vgpr_spill_count")}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(binary.asm["cubin"])
        f.flush()
        text = subprocess.run([tool, "-res-usage", f.name], capture_output=True, text=True, check=True).stdout
    reg, stack = re.findall(r"REG:(\d+) STACK:(\d+)", text)[0]
    return found | {"registers": int(reg), "spilled": int(stack)}


def variant(launch: Launch) -> str:
    """The kernel's name with the dtypes and constants that tell its compilations apart."""
    floats = dict.fromkeys(kind[1:] for _, kind in launch.signature if kind in ("*bf16", "*fp16", "*fp32"))
    sizes = ",".join(f"{k.removeprefix('BLOCK_').lower()}={v:d}" for k, v in launch.constants if v is not None)
    warps = dict(launch.options).get("num_warps", 4)
    return f"{launch.kernel}({'/'.join(sorted(floats))},{sizes},warps={warps})"


def measure(ops: list[str] | None = None, archs: list[str] | None = None) -> list[dict]:
    """The table, or the part of some ops and architectures: one row a kernel, its shapes and an architecture."""
    needed = launches()
    jobs = [(launch, arch) for launch, arch in needed if (not ops or launch.op in ops) and (not archs or arch in archs)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(compiled, *zip(*jobs), chunksize=4))
    rows = [
        {"op": launch.op, "kernel": variant(launch), "shapes": " ".join(needed[launch, arch]), "arch": arch, **result}
        for (launch, arch), result in zip(jobs, results)
    ]
    return sorted(rows, key=lambda r: [str(r[f]) for f in FIELDS[:4]])


def faults(rows: list[dict]) -> list[str]:
    """Kernels that spill or need more shared memory than there is."""
    found = []
    for r in rows:
        name = f"{r['op']} {r['kernel']} on {r['arch']}"
        if int(r["spilled"]):
            found.append(f"{name} spills {r['spilled']} bytes a thread")
        if int(r["shared"]) > SHARED[r["arch"]] * 1024:
            found.append(f"{name} needs {r['shared']} bytes of shared memory, there are {SHARED[r['arch']]} KiB")
    return found


def read() -> tuple[str, list[dict]]:
    """The Triton version that made the committed table, and its rows."""
    with TABLE.open() as f:
        version = f.readline().removeprefix("# triton ").strip()
        return version, list(csv.DictReader(f))


def worse(rows: list[dict], table: list[dict], version: str) -> list[str]:
    """What is not in the table, or takes more than it says; with another Triton only the kernels' presence counts."""
    import triton

    key = lambda r: (r["op"], r["kernel"], r["arch"])  # noqa: E731
    old = {key(r): r for r in table}
    found = [f"{' '.join(k)} is not in {TABLE.name}" for r in rows if (k := key(r)) not in old]
    found += [f"{' '.join(k)} is in {TABLE.name}, but nothing launches it" for k in old.keys() - {key(r) for r in rows}]
    if version != triton.__version__:
        return found
    for r in rows:
        for field in ("registers", "shared"):
            if key(r) in old and int(r[field]) > int(old[key(r)][field]):
                found.append(f"{' '.join(key(r))}: {field} {r[field]}, the table has {old[key(r)][field]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.budget", description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--ops", nargs="*", help="only these ops")
    parser.add_argument("--archs", nargs="*", choices=TARGETS, help="only these architectures")
    asked = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("error: TRITON_INTERPRET=1 is set: interpreted kernels are not compiled", file=sys.stderr)
        return 2
    import triton

    def mine(row: dict) -> bool:
        return (not asked.ops or row["op"] in asked.ops) and (not asked.archs or row["arch"] in asked.archs)

    rows = measure(asked.ops, asked.archs)
    found, (version, table) = faults(rows), read()
    if asked.check:
        if version != triton.__version__:  # another compiler allots registers otherwise
            print("\n".join(f"note: {line}" for line in found))
            found = []
        found += worse(rows, [r for r in table if mine(r)], version)
    else:
        if version != triton.__version__ and (asked.ops or asked.archs):
            print(f"error: the table is of Triton {version}: make all of it anew", file=sys.stderr)
            return 2
        rows = sorted([*rows, *(r for r in table if not mine(r))], key=lambda r: [str(r[f]) for f in FIELDS[:4]])
        with TABLE.open("w", newline="") as f:
            f.write(f"# triton {triton.__version__}\n")
            writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for line in found:
        print(line)
    print(f"{len(rows)} compilations, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

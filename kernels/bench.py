"""How fast the kernels are on this GPU: correctness first, then time, memory and share of the floor.

    python -m kernels.bench --compile-only    # first, in parallel: what the second half would wait for
    python -m kernels.bench --half 1          # half of the cases, and then the other: at most 5 minutes each
    python -m kernels.bench --half 2
    python -m kernels.bench --missing         # or, in place of the halves, what this GPU's table lacks

appends to `kernels/bench.csv` and writes `kernels/README.md` anew from it. The floor is the larger of two times: the
bytes that must move over this GPU's measured copy bandwidth, and the products over its measured bf16 rate; share is
floor / median time. No arm is timed whose result is wrong. A chain of latent steps is measured as `Backbone.chain`
calls it (load the prompt's cache, run, copy the results out) against three rivals on the same weights and cache that
do the same: `hf`, the layers of transformers in eager mode; `graph`, plain torch with a static cache, the whole chain
in one CUDA graph; `compile`, the same with what surrounds attention compiled by Inductor's defaults. Both graphs attend
slices of the cache without a mask. A loop along the depth is measured a recurrence, one layer at one position; its
floor reads the weights once for all recurrences. Ops on rows are timed in a graph of several calls on different inputs,
so that neither launches nor the cache are measured.

A case is a process with a time limit. Some processes run at a time, but only one of them has the GPU: the others import
meanwhile what they will need, which takes longer than most cases.
"""

import argparse
import csv
import datetime
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from kernels import bench_cases
from kernels.bench_cases import Case, Plan, build, planned
from kernels.budget import Shape, random_decoder

TABLE = Path(__file__).parent / "bench.csv"
LIMIT = 90  # seconds that a case may have the GPU
AHEAD = 8  # processes at a time, one of which has the GPU: some ten seconds of imports each
LATE = 3  # exit code of a case whose turn came too late
WRONG = 2.0  # times torch's error, both against fp64
FIELDS = ["op", "shape", "batch", "dtype", "impl", "ms_20", "ms_50", "ms_80", "peak_mb", "floor_ms", "share", "error",
          "torch_error", "gpu", "torch", "triton", "date"]  # fmt: skip
TINY = Shape("tiny", 32, 40, 2, 4, 2, 8, 48)  # of a dry run


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

    from kernels.graphs import captured

    if not isinstance(call, list):
        return tuple(do_bench(call, quantiles=[0.2, 0.5, 0.8]))
    graph, *_ = captured(lambda: [c() for c in call], warm=3)
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


def lacking(plans: list[Plan], gpu: str) -> list[Plan]:
    """Those whose kernel has not been measured on a GPU of this name."""
    done = {(r["op"], r["shape"], r["batch"], r["dtype"]) for r in read() if (r["impl"], r["gpu"]) == ("triton", gpu)}
    return [p for p in plans if (p.op, p.shape.name, str(p.batch), p.dtype) not in done]


@contextmanager
def the_gpu() -> Iterator[None]:
    """Within, no other case of this benchmark uses the GPU; a process that keeps it longer than LIMIT is ended."""
    with Path(__file__).open() as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)  # let go of when the process ends, however it does
        signal.alarm(LIMIT)  # its default ends a process even where a kernel does not return
        yield
        signal.alarm(0)


def one(plan: Plan, compile_only: bool, until: float) -> int:
    """A case in this process: measured and written down, or only compiled, on two layers."""
    if compile_only:  # many at a time on one GPU: with few rows
        signal.alarm(LIMIT)
        errors(build(replace(plan, batch=min(plan.batch, 512)), layers=2))
        return 0
    prepare(plan)
    with the_gpu():
        if time.monotonic() > until:
            return LATE
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


def prepare(plan: Plan) -> None:
    """Import what a case will need, without the GPU: the kernels, and a chain's rivals."""
    import torch
    import triton.testing  # noqa: F401

    for path in Path(__file__).parent.glob("*/triton.py"):
        import_module(f"kernels.{path.parent.name}.triton")
    if plan.op == "decode_step":
        import torch._inductor.compile_fx

        tiny = replace(TINY, name=plan.shape.name, kv_heads=4)  # makes transformers load the family's module
        bench_cases.hf_chain(tiny, random_decoder(tiny, "cpu", torch.float32), [], torch.zeros(1, tiny.d))


def each(plans: list[Plan], compile_only: bool, workers: int, seconds: float) -> int:
    """A process for each case. Returns how many failed, hung, or were not begun in `seconds`."""
    end = time.monotonic() + seconds

    def go(plan: Plan) -> bool:
        command = [sys.executable, "-m", "kernels.bench", "--one", str(planned().index(plan)), "--until", str(end)]
        done = None
        if time.monotonic() <= end:
            done = subprocess.run(
                command + ["--compile-only"] * compile_only, stdout=None, stderr=subprocess.PIPE, text=True
            )
        if done is None or done.returncode == LATE:
            print(f"NOT BEGUN {plan.name}", flush=True)
        elif done.returncode == -signal.SIGALRM:
            print(f"FAILED {plan.name}: not done after {LIMIT} s", flush=True)
        elif done.returncode:
            print(f"FAILED {plan.name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return done is None or bool(done.returncode)

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(go, plans))


def dry_run(ops: list[str]) -> int:
    """Cases at a tiny size on the CPU, their kernels interpreted, nothing timed: what fails here fails there."""
    bench_cases.STEPS, bench_cases.PROMPT, bench_cases.RECURRENCES, failed = 2, 16, 2, 0
    for op in ops:
        for shape in (replace(TINY, name="gpt2", kv_heads=4), replace(TINY, name="qwen3-0.6b")):
            case = build(Plan(op, shape, 2, "fp32"), "cpu")
            found = errors(case)
            wrong = {name: e for name, e in found.items() if not e <= max(WRONG * found["torch"], 1e-5)}
            failed += bool(wrong)
            print(f"{op} {shape.name}: {', '.join(f'{k} {v:.0e}' for k, v in found.items())}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n\n")[0])
    ops, shapes = (list(dict.fromkeys(names)) for names in zip(*((p.op, p.shape.name) for p in planned())))
    for flag, every in (("--ops", ops), ("--shapes", shapes)):
        about = f"only some of {', '.join(every)}"
        parser.add_argument(flag, nargs="+", choices=every, default=every, metavar="NAME", help=about)
    parser.add_argument("--half", type=int, choices=(1, 2), help="only every second case, from the first or the second")
    parser.add_argument("--missing", action="store_true", help="only cases that the table lacks for this GPU")
    parser.add_argument("--compile-only", action="store_true", help="fill the compilers' caches, in parallel")
    parser.add_argument("--seconds", type=float, default=300, help="begin no case after so long")
    parser.add_argument("--readme", action="store_true", help="only write kernels/README.md anew")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on the CPU, interpreted, nothing timed")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.readme:
        from kernels import report

        report.write()
        return 0
    if asked.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
        return 1 if dry_run(asked.ops) else 0
    if asked.one is not None:
        return one(planned()[asked.one], asked.compile_only, asked.until)
    import torch

    if not torch.cuda.is_available():
        print("error: there is no GPU to measure on", file=sys.stderr)
        return 2
    plans = [p for p in planned() if p.op in asked.ops and p.shape.name in asked.shapes]
    plans = lacking(plans, torch.cuda.get_device_name()) if asked.missing else plans
    plans = plans[asked.half - 1 :: 2] if asked.half else plans
    workers = os.cpu_count() or 1 if asked.compile_only else AHEAD
    failed = each(plans, asked.compile_only, workers, asked.seconds)
    if not asked.compile_only:
        from kernels import report

        report.write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

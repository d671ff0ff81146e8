"""Writes `kernels/README.md` from the tables that `kernels.bench` and `kernels.budget` made."""

from pathlib import Path

from kernels import bench, budget
from kernels.bench_cases import planned

README = Path(__file__).parent / "README.md"

HEAD = Path(__file__).parent / "page.md"  # what is written by hand


def write() -> None:
    README.write_text(text())


def text() -> str:
    """The whole page."""
    return "\n".join([HEAD.read_text(), *measured(), *compiled()])


def measured() -> list[str]:
    rows = bench.read()
    gpus = sorted({r["gpu"] for r in rows})
    lines = ["## Measured on a GPU", ""]
    for gpu in gpus:
        versions = sorted({f"torch {r['torch']}, triton {r['triton']}, {r['date']}" for r in rows if r["gpu"] == gpu})
        lines.append(f"* {gpu} ({'; '.join(versions)})")
    lines += [
        "",
        "Median milliseconds a latent step, a recurrence or a call, over all that a caller waits for, and for each GPU the",
        "fastest of the rivals: `compile` and `graph` are plain torch with a static cache, the whole chain in one CUDA graph,",
        "with and without Inductor; `torch` is the definition, `hf` the layers of transformers, both eager. The floor is the",
        "time that the bytes or the products take on this card. `bench.csv` has every arm with percentiles, memory and error;",
        "`paper/LOG.md` has what was expected, and what came of it. Each row was measured with the kernels of that date; when a",
        "kernel was rewritten, its rows were taken out of the latest card's columns.",
        "",
        f"| | | | | {' '.join(f'{gpu} | | | |' for gpu in gpus)}",
        f"|---|---|---|---|{'---|---|---|---|' * len(gpus)}",
        f"| op | shape | batch | dtype | {'triton | best rival | floor / triton | rival / triton | ' * len(gpus)}".rstrip(),
    ]  # fmt: skip
    order = [(p.op, p.shape.name, p.batch, p.dtype) for p in planned()]
    cases: dict[tuple, dict[str, list[dict]]] = {key: {} for key in order}
    for r in rows:
        key = r["op"], r["shape"], int(r["batch"]), r["dtype"]
        cases.setdefault(key, {}).setdefault(r["gpu"], []).append(r)
    cases = {key: arms for key, arms in cases.items() if arms}
    for (op, shape, batch, dtype), arms in cases.items():
        cells = [cell for gpu in gpus for cell in compared(arms.get(gpu, []))]
        lines.append(f"| {' | '.join([op, shape, str(batch), dtype, *cells])} |")
    lines.append("")
    done = {(r["op"], r["shape"], int(r["batch"]), r["dtype"]) for r in rows if r["impl"] == "triton"}
    missing: dict[str, list[str]] = {}
    for op, shape, batch, dtype in (key for key in order if key not in done):
        missing.setdefault(f"{op}, {dtype}", []).append(f"{shape} B={batch}")
    if missing:
        lines += ["**Not measured on a GPU yet**, so nothing is claimed about their speed:", ""]
        lines += [f"* `{op}`: {', '.join(names)}" for op, names in missing.items()] + [""]
    return lines


def compared(arms: list[dict]) -> list[str]:
    """Cells of one case on one GPU: ours, the best rival, share of the floor, how many times as fast as that rival."""
    ms = {r["impl"]: float(r["ms_50"]) for r in arms}
    ours = ms.pop("triton", None)
    best = min(ms, key=lambda impl: ms[impl], default=None)
    return [
        "" if ours is None else f"{ours:.3g}",
        "" if best is None else f"{ms[best]:.3g} {best}",
        "" if ours is None else f"{float(arms[0]['floor_ms']) / ours:.0%}",
        "" if ours is None or best is None else f"{ms[best] / ours:.2f}",
    ]


def compiled() -> list[str]:
    version, rows = budget.read()
    lines = [
        "## Compiled for",
        "",
        f"Triton {version}, the sizes of {', '.join(s.name for s in budget.SHAPES)}: most registers a thread and most shared",
        "memory (KiB) over an op's kernels; none of these spills. `decode_step` in bf16 and fp32 at 1, 4, 16 and 64 rows, on",
        "two layers; the others in bf16 (`vocab_mix` of one state in fp32 too). `budget.csv` has the sizes, and a test holds",
        "all that is for sm_90.",
        "",
        f"| op | {' | '.join(budget.TARGETS)} |",
        f"|---|{'---|' * len(budget.TARGETS)}",
    ]
    for op in sorted({r["op"] for r in rows}):
        cells = []
        for arch in budget.TARGETS:
            mine = [r for r in rows if r["op"] == op and r["arch"] == arch]
            most = [max((int(r[field]) for r in mine), default=0) for field in ("registers", "shared")]
            cells.append(f"{most[0]}, {most[1] // 1024} KiB" if mine else "torch")
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return [*lines, ""]

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


ARMS = ("triton", "compile", "graph", "torch", "hf")


def measured() -> list[str]:
    rows = bench.read()
    lines = ["## Measured on a GPU", ""]
    for gpu in sorted({r["gpu"] for r in rows}):
        mine = [r for r in rows if r["gpu"] == gpu]
        cases: dict[tuple, dict[str, dict]] = {}
        for r in mine:
            cases.setdefault((r["op"], r["shape"], int(r["batch"]), r["dtype"]), {})[r["impl"]] = r
        versions = sorted({f"torch {r['torch']}, triton {r['triton']}, {r['date']}" for r in mine})
        lines += [
            f"{gpu} ({'; '.join(versions)}): median milliseconds",
            "a latent step, a recurrence or a call, over all that a caller waits for. `compile` and `graph` are plain torch with a",
            "static cache, the whole chain in one CUDA graph, with and without Inductor; `torch` is the definition, `hf` the layers",
            "of transformers, both eager. The floor is the time that the bytes or the products take on this card. `bench.csv` has",
            "percentiles, memory and each arm's error; `paper/LOG.md` has what was expected, and what came of it. Tiles were",
            "changed after commit e15a91d, which these rows are of, so that nothing spills under Triton 3.9.",
            "",
            f"| op | shape | batch | dtype | {' | '.join(ARMS)} | floor | floor / triton | best rival / triton |",
            f"|---|---|---|---|{'---|' * len(ARMS)}---|---|---|",
        ]
        for (op, shape, batch, dtype), arms in cases.items():
            ms = {impl: float(r["ms_50"]) for impl, r in arms.items()}
            rivals = [value for impl, value in ms.items() if impl != "triton"]
            cells = [f"{ms[arm]:.3g}" if arm in ms else "" for arm in ARMS]
            floor = float(next(iter(arms.values()))["floor_ms"])
            ratios = ["", ""]
            if "triton" in ms:
                ratios = [f"{floor / ms['triton']:.0%}", f"{min(rivals) / ms['triton']:.2f}" if rivals else ""]
            cells = [op, shape, str(batch), dtype, *cells, f"{floor:.3g}", *ratios]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    done = {(r["op"], r["shape"], int(r["batch"]), r["dtype"]) for r in rows if r["impl"] == "triton"}
    missing: dict[str, list[str]] = {}
    for p in planned():
        if (p.op, p.shape.name, p.batch, p.dtype) not in done:
            missing.setdefault(f"{p.op}, {p.dtype}", []).append(f"{p.shape.name} B={p.batch}")
    if missing:
        lines += ["**Not measured on a GPU yet**, so nothing is claimed about their speed:", ""]
        lines += [f"* `{op}`: {', '.join(names)}" for op, names in missing.items()] + [""]
    return lines


def compiled() -> list[str]:
    version, rows = budget.read()
    lines = [
        "## Compiled for",
        "",
        f"Triton {version}, the sizes of {', '.join(s.name for s in budget.SHAPES)}: most registers a thread and most shared",
        "memory (KiB) over an op's kernels; none of these spills. `decode_step` in bf16 and fp32 at 1, 4, 16 and 64 rows, on",
        "two layers; the others in bf16, at the sizes in `budget.csv`, which a test holds (all that is for sm_90).",
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

"""Writes `kernels/README.md` from the tables that `kernels.bench` and `kernels.budget` made."""

from pathlib import Path

from kernels import bench, budget

README = Path(__file__).parent / "README.md"

HEAD = """\
# Kernels

Triton kernels for the steps of latent loops, each beside its plain-torch definition. This page is written by
`python -m kernels.bench --readme` from `bench.csv` and `budget.csv`: change those, or `report.py`.

| op | what it does | used by |
|---|---|---|
| `decode_step` | k latent steps without gradient: five launches a layer, the whole chain one CUDA graph | `Backbone.chain`: sampling, evaluation |
| `latent_loop` | the same chain in one launch, with grid barriers | `LatentDecoder(..., persistent=True)`; the benchmark's `persistent` rows say where it wins |
| `latent_chain` | k latent steps in training: one autograd node a step, K and V in place, weight gradients made once | `Backbone.step` |
| `linear_logprob` | log-prob and entropy of tokens from hidden states, forward and backward, no logits in memory | every loss |
| `thought_feedback` | final norm, projection, gate and embedding mix: Coconut, CODI and HRPO are special cases | a library function: for gates, which no method here has yet |
| `recurrent_block` | injection of the input and the looped block's first norm, forward and backward | `latent/methods/recurrent.py` |
| `recurrent_loop` | all recurrences of the looped layers in one launch, weights kept in shared memory | `latent/methods/recurrent.py`: up to 64 positions at a time, without gradient |
| `exit_criterion` | second difference of states; KL between two steps' next-token distributions | `latent/halting.py`: `Converged` |
| `vocab_mix` | soft tokens: softmax(h E^T) E with lse and entropy, one read of E; top-k form | `Backbone.mix`: feedback `soft`, without gradient |
| `shared_prefix_attention` | G rollouts of a prompt read its K and V once | `latent/generate.py`: rollouts of thoughts without random choices |

A folder holds `reference.py` (the definition, fp32 or better), `triton.py` (the fused version; `deferred.py` for
`latent_chain`, which is torch on every device) and `__init__.py` (formula, shapes, the public function). Every
public function takes `impl`: `auto` is Triton on a GPU and torch elsewhere, a named one runs or raises ValueError; the
environment variable LATENT_KERNELS, or `--kernels` of `train.latent`, sets it for all. What a kernel cannot serve (fp64,
a family it does not know) goes to torch under `auto`, with one line in the log.

Tests run every kernel in Triton's interpreter against fp64: each output and gradient at most twice as wrong as plain
torch in the same dtype, odd sizes, fresh memory full of NaN, equal bit for bit from run to run (`tests/kernels/`).

`kernels/` is also the name of a Hugging Face package. Ours is a namespace folder that `import latent` joins to theirs;
where theirs is installed, import `latent` first.
"""


def write() -> None:
    README.write_text(text())


def text() -> str:
    """The whole page."""
    return "\n".join([HEAD, *measured(), *compiled()])


def measured() -> list[str]:
    rows = bench.read()
    lines = ["## Measured on a GPU", ""]
    for gpu in sorted({r["gpu"] for r in rows}):
        lines += [f"{gpu}: median milliseconds a step or a call, and share of the bandwidth floor.", ""]
        lines += [
            "| op | shape | batch | impl | ms | share | peak MB | error / torch's |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['op']} | {r['shape']} | {r['batch']} | {r['impl']} | {r['ms_50']} | {float(r['share']):.0%} "
            f"| {r['peak_mb']} | {r['error'] or '-'} / {r['torch_error']} |"
            for r in rows
            if r["gpu"] == gpu
        ] + [""]
    done = {(r["op"], r["shape"], int(r["batch"])) for r in rows if r["impl"] == "triton"}
    missing: dict[str, list[str]] = {}
    for op, shape, batch in bench.planned():
        if (op, shape.name, batch) not in done:
            missing.setdefault(op, []).append(f"{shape.name} B={batch}")
    if missing:
        lines += ["**Not measured on a GPU yet**, so nothing is claimed about their speed:", ""]
        lines += [f"* `{op}`: {', '.join(names)}" for op, names in missing.items()] + [""]
    return lines


def compiled() -> list[str]:
    version, rows = budget.read()
    lines = [
        "## Compiled for",
        "",
        f"Triton {version}, bf16, the sizes of {', '.join(s.name for s in budget.SHAPES)}: most registers a thread and",
        "most shared memory (KiB) over an op's kernels; none spills. `budget.csv` has every kernel, and a test holds it.",
        "",
        f"| op | {' | '.join(budget.TARGETS)} |",
        f"|---|{'---|' * len(budget.TARGETS)}",
    ]
    for op in sorted({r["op"] for r in rows}):
        cells = []
        for arch in budget.TARGETS:
            mine = [r for r in rows if r["op"] == op and r["arch"] == arch]
            cells.append(f"{max(int(r['registers']) for r in mine)}, {max(int(r['shared']) for r in mine) // 1024} KiB")
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return [*lines, ""]

"""A small ablation, and records of it with known results."""

from dataclasses import replace

from latent.plain import identity, plain
from paper import records
from paper.design import Ablation, Contrast, cells

TINY = {
    "model.n_embd": 16,
    "model.n_head": 2,
    "train.steps": 6,
    "train.batch": 4,
    "train.save_every": 2,
    "judge.items": 12,
    "judge.level_items": 2,
}
MINI = Ablation(
    claim="Two latents are not one.",
    base="sim",
    axes=({f"{k} latents": {**TINY, "method.n_latent": k, "method.step_tokens": 32} for k in (1, 2)},),
    seeds=(0, 1),
    core_minutes=1,
    contrasts=(Contrast("2 latents", "1 latents", claim="more"),),
)

FEW = replace(MINI, seeds=(0,))
_LONGER = {**MINI.axes[0]["1 latents"], "train.steps": 60, "train.log_every": 20, "train.save_every": 4}
LONG = replace(MINI, axes=({"long": _LONGER},), seeds=(0,), contrasts=())


def planted(correct: dict[str, list[list[int]]], ablation: Ablation = MINI) -> dict[str, dict]:
    """Records of an ablation by run id, each row's results given seed by seed."""
    lines = {}
    for cell in cells(ablation, {}):
        hits = correct[cell.row][cell.seed]
        main = {"accuracy": sum(hits) / len(hits), "used": 2.0}
        pooled = {"accuracy": main["accuracy"], "used": 1.5, "correct": records.pack(hits), "problems": "all"}
        result = {
            "main": main,
            "pooled": pooled,
            "sooner": 4,
            "correct": records.pack(hits),
            "sweep": {},
            "latents": 2,
            "used_mean": 1.5,
        }
        result |= {"steps": 6.0, "flops": 2e6, "core_seconds": 10.0 + cell.seed, "parameters": 1000, "steps_written": 0}
        env = {"cpu": "a processor", "packages": {"torch": "2.0"}, "git": "abc", "changed": False}
        lines[cell.run.id] = {
            "id": cell.run.id, "identity": identity(cell.run), "config": plain(cell.run), "env": env, "result": result,
        }  # fmt: skip
    return lines


def written(folder, lines: dict[str, dict]):
    """A folder of records."""
    for line in lines.values():
        records.add(folder, line)
    return folder


def seeds(ablation: Ablation, n: int) -> Ablation:
    return replace(ablation, seeds=tuple(range(n)))

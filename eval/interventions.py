"""Does the answer depend on the latents? Interventions on what goes into them, as critics of latent reasoning ask for.

An intervention changes the input of a latent step (the fed-back embedding, or the looped state of a loop along the
depth), and everything after it is computed anew. Rows stop where they stopped without it. All interventions act within
a batch, among the rows that think the step: a problem's donor is another problem of its batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from eval import interchange
from eval.environments.base import Environment, Problem, iterate
from eval.judge import verify
from kernels.errors import UserError
from latent.generate import Reasoner, decode
from latent.methods.base import Edit
from latent.thought import Greedy, Thought

INTERVENTIONS = ("removed", "zeroed", "mean", "noise", "shuffled", "other problem")


class StopAfter(Greedy):
    """Greedy, but row b stops after `used_B[b]` latents."""

    def __init__(self, used_B: Tensor):
        super().__init__(used_B=used_B)

    def __call__(self, kind: str, dist: Distribution, live_B: Tensor, h_UD: Tensor | None = None) -> Tensor:
        if kind != "halt":
            return super().__call__(kind, dist, live_B)
        assert isinstance(dist, Bernoulli)
        return self.settled(live_B).to(dist.logits.dtype)


def donors_of(texts: list[str], used: list[int]) -> list[int]:
    """The donor of each row: the next row, cyclically, with as many latents and another text.

    Failing that, the next with another text and any latents; failing that, the next row.
    """
    n, donors = len(texts), []
    for b in range(n):
        others = [d for d in ((b + j) % n for j in range(1, n)) if texts[d] != texts[b]]
        donor = next((d for d in others if used[d] >= used[b]), None)
        if donor is None:
            donor = next((d for d in others if used[d]), (b + 1) % n)
        donors.append(donor)
    return donors


@dataclass
class Baseline:
    """A batch answered as trained: texts, verdicts, the thought, and the input of each latent step."""

    problems: list[Problem]
    texts: list[str]
    correct: list[int]
    thought: Thought
    inputs: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def donors(self) -> Tensor:
        """The donor of each row, as `donors_of` says."""
        return torch.tensor(donors_of(self.texts, self.thought.used_B.tolist()))

    def donated(self, latent: int) -> Tensor:
        """The donors' inputs of a latent; of a donor that thought fewer, the input of its last."""
        last = (self.thought.used_B - 1).clamp(min=0).tolist()
        rows = [self.inputs[min(latent, last[d])][d] for d in self.donors.tolist()]
        return torch.stack(rows)

    def rows_thinking(self, latent: int) -> Tensor:
        """The rows that think a latent, counted from 0."""
        return (self.thought.used_B > latent).nonzero()[:, 0]


def think_and_answer(
    reasoner: Reasoner, problems: list[Problem], choose: Greedy, steps: int | None = None, edit: Edit | None = None
) -> tuple[list[str], Thought]:
    """Greedy texts, and the thoughts before them."""
    method, codec = reasoner.method, reasoner.codec
    prompt = codec.prompt([p.question for p in problems], method.backbone.device)
    thought = method.think(prompt, choose, steps=steps, edit=edit)
    return codec.texts(decode(method, thought, Greedy(), reasoner.max_tokens, codec.end)), thought


def correct(env: Environment, problems: list[Problem], texts: list[str]) -> list[int]:
    """1 for each text that is right, 0 for the others."""
    return [int(verify(env, p, t).correct) for p, t in zip(problems, texts)]


def recording(inputs: dict[int, Tensor]) -> Edit:
    """An edit that changes nothing, and keeps the input of each latent step in `inputs`: that of its last pass."""

    def edit(i: int, x: Tensor) -> Tensor:
        inputs[i] = x
        return x

    return edit


def baselines(reasoner: Reasoner, env: Environment, problems: list[Problem], batch: int) -> Iterator[Baseline]:
    """The problems answered as trained, a batch at a time."""
    for part in iterate(problems, batch):
        inputs: dict[int, Tensor] = {}
        texts, thought = think_and_answer(reasoner, part, Greedy(), edit=recording(inputs))
        yield Baseline(part, texts, correct(env, part, texts), thought, inputs)


def intervened(reasoner: Reasoner, baseline: Baseline, kind: str, seed: int) -> list[str]:
    """The texts of a batch after an intervention on every latent step."""
    rng = torch.Generator(device="cpu").manual_seed(seed)

    def edit(i: int, x: Tensor) -> Tensor:
        source, live = baseline.inputs[i], baseline.rows_thinking(i)
        match kind:
            case "zeroed":
                return torch.zeros_like(x)
            case "mean":
                return source[live].mean(0, keepdim=True).expand_as(x)
            case "noise":  # of the same norm
                noise = torch.randn(x.shape, generator=rng).to(x)
                return noise * source.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
            case "shuffled":  # each latent by a permutation of its own
                mixed = source.clone()
                mixed[live] = source[live[torch.randperm(len(live), generator=rng).to(live.device)]]
                return mixed
            case "other problem":  # all latents of one donor
                return baseline.donated(i)
        raise UserError(f"intervention must be one of {', '.join(INTERVENTIONS)}, got {kind!r}")

    if kind == "removed":
        return think_and_answer(reasoner, baseline.problems, Greedy(), steps=0)[0]
    return think_and_answer(reasoner, baseline.problems, StopAfter(baseline.thought.used_B), edit=edit)[0]


def patched(reasoner: Reasoner, baseline: Baseline, latent: int) -> list[str]:
    """The texts of a batch with the input of one latent step, counted from 0, taken from the donor."""

    def edit(i: int, x: Tensor) -> Tensor:
        return baseline.donated(i) if i == latent else x

    return think_and_answer(reasoner, baseline.problems, StopAfter(baseline.thought.used_B), edit=edit)[0]


@torch.inference_mode()
def causal(reasoner: Reasoner, env: Environment, problems: list[Problem], batch: int = 250) -> dict:
    """What the answer depends on: interventions, patches of single latents, and the number of latents.

    Returns, with 0/1 results item by item: `intact`; `interventions`, for each `correct` and `changed`, the share of
    texts that differ from the intact ones; `patches`, for each latent, among the `n` rows that think it, `flipped`, the
    share of texts that changed, and `donor`, the share that became the donor's text where that was another; and
    `sweep`, correct results by the number of latent steps, as far as the positions go. `clusters` is each item's.

    Where the environment has states, each of `patches` also has what `interchange.Tally` says of it, and `interchange`
    is its summary of all patches together.

    Raises UserError for a loop along the depth on prompts of different lengths, between which states cannot be
    exchanged, and for a last batch of one problem, which has no donor.
    """
    method = reasoner.method
    prompts = [len(reasoner.codec.question(p.question)) for p in problems]
    if method.parallel_answer is not None and min(prompts) != max(prompts):
        raise UserError("states of a loop along the depth can be exchanged only between prompts of the same length")
    if len(problems) % batch == 1:
        raise UserError(f"{len(problems)} problems in batches of {batch} leave one without another to take from")
    intact: list[int] = []
    kinds: dict[str, dict] = {kind: {"correct": [], "changed": 0.0} for kind in INTERVENTIONS}
    patches: list[dict] = []
    exchanged = interchange.Tally(method, env)
    for seed, baseline in enumerate(baselines(reasoner, env, problems, batch)):
        intact += baseline.correct
        for kind, so_far in kinds.items():
            texts = intervened(reasoner, baseline, kind, seed)
            so_far["correct"] += correct(env, baseline.problems, texts)
            so_far["changed"] += sum(a != b for a, b in zip(texts, baseline.texts)) / len(problems)
        donors = [baseline.texts[d] for d in baseline.donors.tolist()]
        for i in range(len(baseline.inputs)):
            if i == len(patches):
                patches.append({"n": 0, "flipped": 0, "donor": 0, "apart": 0})
            texts, counts = patched(reasoner, baseline, i), patches[i]
            exchanged.add(baseline, i, texts)
            for b in baseline.rows_thinking(i).tolist():
                counts["n"] += 1
                counts["flipped"] += texts[b] != baseline.texts[b]
                counts["apart"] += donors[b] != baseline.texts[b]
                counts["donor"] += donors[b] != baseline.texts[b] and texts[b] == donors[b]
    for i, counts in enumerate(patches):
        counts["flipped"] = counts["flipped"] / max(1, counts["n"])
        counts["donor"] = counts["donor"] / max(1, counts.pop("apart"))
        counts |= exchanged.of(i)
    return {
        "intact": intact,
        "keys": [p.key for p in problems],
        "clusters": [env.cluster(p) for p in problems],
        "interventions": kinds,
        "patches": patches,
        **exchanged.together(),
        "sweep": by_steps(reasoner, env, problems, batch, max(prompts)),
        "trained": method.trained_steps,
    }


def by_steps(
    reasoner: Reasoner, env: Environment, problems: list[Problem], batch: int, prompt: int
) -> dict[str, list[int]]:
    """Correct results by the number of latent steps: to half as many again as trained, as far as the positions go.

    `prompt`: tokens of the longest prompt.
    """
    method, results = reasoner.method, {}
    trained = method.trained_steps
    for k in range(trained + max(2, trained // 2) + 1):
        written = 0 if method.parallel_answer is not None else reasoner.max_tokens - 1
        if prompt + method.reserved(k) + written > method.backbone.positions:
            break
        results[str(k)] = [
            hit
            for part in iterate(problems, batch)
            for hit in correct(env, part, think_and_answer(reasoner, part, Greedy(), steps=k)[0])
        ]
    return results

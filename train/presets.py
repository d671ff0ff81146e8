"""What `python -m train.latent NAME` runs: a function a preset."""

from collections.abc import Callable

from eval.environments import GSM8K, Cups, ProsQA
from latent.config import Coconut, CoT, LearnedStop, ModelConfig, NoCoT, Recurrent, Sim
from train.config import RLVR, SFT, Arm, Experiment, Judge, Run


def cups() -> Experiment:
    """Latents against no-CoT and CoT on cups, then RLVR that learns when to stop."""
    sim = Sim(n_latent=8, stride=4, halt=LearnedStop())
    return Experiment(
        env=Cups(),
        model=ModelConfig(),
        arms={
            "latent": Arm(sim, SFT(steps=1500)),
            "cot": Arm(CoT(), SFT(steps=1200)),
            "no-cot": Arm(NoCoT(), SFT(steps=1500)),
            "latent-rlvr": Arm(
                sim, RLVR(steps=400, lr=6e-4, stop_lr=10.0, latent_cost=0.02, std_floor=0.01), init="latent"
            ),
        },
    )


def cups_rlvr() -> Experiment:
    """RLVR alone on half-trained latents, beside SFT of equal compute."""
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


def recurrent() -> Run:
    """Recurrent depth on cups, judged at 1 to 16 recurrences."""
    return Run(
        env=Cups(),
        model=ModelConfig(),
        method=Recurrent(),
        train=SFT(steps=2400),
        judge=Judge(sweep=tuple(range(1, 17))),
    )


def no_cot() -> Run:
    """The no-CoT control on cups."""
    return Run(env=Cups(), model=ModelConfig(), method=NoCoT(), train=SFT())


def cot() -> Run:
    """The CoT control on cups."""
    return Run(env=Cups(), model=ModelConfig(), method=CoT(), train=SFT())


def coconut() -> Run:
    """Coconut's curriculum on cups, from CoT to latents in one run."""
    return Run(env=Cups(), model=ModelConfig(), method=Coconut(n_latent=8, stride=4), train=SFT(steps=4000))


def sim() -> Run:
    """Latents with a step decoder on cups."""
    return Run(env=Cups(), model=ModelConfig(), method=Sim(n_latent=8, stride=4), train=SFT(steps=1600))


def prosqa(closed: bool = False) -> Experiment:
    """Coconut's curriculum on generated ProsQA, beside no-CoT and CoT and the five shortcuts."""
    return Experiment(
        env=ProsQA(closed=closed),
        model=ModelConfig(n_layer=2, n_embd=128, n_head=4, n_positions=512),
        arms={
            "coconut": Arm(Coconut(n_latent=6, stage_steps=75), SFT(steps=600, batch=16, lr=1e-3, log_every=20)),
            "cot": Arm(CoT(), SFT(steps=600, batch=16, lr=1e-3, log_every=20)),
            "no-cot": Arm(NoCoT(), SFT(steps=600, batch=16, lr=1e-3, log_every=20)),
        },
        judge=Judge(items=500, batch=50),
    )


def prosqa_closed() -> Experiment:
    """The same on problems in which none of the five shortcuts works."""
    return prosqa(closed=True)


def gsm8k() -> Run:
    """Coconut on GSM8K text: 6 latents, 2 a step, 3 stages; `--model.pretrained gpt2` for a pretrained backbone."""
    return Run(
        env=GSM8K(),
        model=ModelConfig(n_layer=4, n_embd=128, n_head=4, n_positions=512),
        method=Coconut(n_latent=6, latents_per_step=2, advance_at=1.0, stage_steps=150),
        train=SFT(steps=800, batch=16, lr=1e-3, log_every=20, save_every=100),
        judge=Judge(items=500, batch=50),
    )


PRESETS: dict[str, Callable[[], Run | Experiment]] = {
    "cups": cups,
    "cups-rlvr": cups_rlvr,
    "recurrent": recurrent,
    "prosqa": prosqa,
    "prosqa-closed": prosqa_closed,
    "gsm8k": gsm8k,
    "no-cot": no_cot,
    "cot": cot,
    "coconut": coconut,
    "sim": sim,
}

"""What `python -m train.latent NAME` runs: a function a preset."""

from collections.abc import Callable

from eval.environments.cups import Cups
from latent.config import Coconut, CoT, LearnedStop, ModelConfig, NoCoT, Recurrent, Sim
from train.config import RLVR, SFT, Arm, Experiment, Judge, Run


def cups() -> Experiment:
    """Latents against no-CoT and CoT on cups, then RLVR that learns when to stop."""
    sim = Sim(n_latent=8, stride=4)
    stop = Sim(n_latent=8, stride=4, halt=LearnedStop())
    return Experiment(
        env=Cups(),
        model=ModelConfig(),
        arms={
            "latent": Arm(sim, SFT(steps=1600)),
            "cot": Arm(CoT(), SFT(steps=1200)),
            "no-cot": Arm(NoCoT(), SFT(steps=1500)),
            "latent-rlvr": Arm(stop, RLVR(steps=300, latent_cost=0.02), init="latent"),
        },
    )


def cups_rlvr() -> Experiment:
    """RLVR alone on half-trained latents, beside SFT of equal compute."""
    sim = Sim(n_latent=8, stride=4)
    return Experiment(
        env=Cups(),
        model=ModelConfig(),
        arms={
            "half-trained": Arm(sim, SFT(steps=450)),
            "rlvr": Arm(sim, RLVR(steps=400, lr=4e-4), init="half-trained"),
            "sft": Arm(sim, SFT(steps=600, warmup=10), init="half-trained"),
        },
    )


def recurrent() -> Run:
    """Recurrent depth on cups, judged at 1 to 16 recurrences."""
    return Run(
        env=Cups(),
        model=ModelConfig(),
        method=Recurrent(),
        train=SFT(steps=1500),
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


PRESETS: dict[str, Callable[[], Run | Experiment]] = {
    "cups": cups,
    "cups-rlvr": cups_rlvr,
    "recurrent": recurrent,
    "no-cot": no_cot,
    "cot": cot,
    "coconut": coconut,
    "sim": sim,
}

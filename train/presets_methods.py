"""Every method along the sequence beside the controls, at equal compute: about a minute of one core for each arm.

Order matters in both tasks, a state is one token, and chains and latents are as long: `methods-one-token` has one
branch, `methods-modular` many. Numbers of updates follow from the milliseconds that an update takes; those of a start
count. The claims, and the search for every arm's rate, are in paper/planned.py.

The methods' settings are the published ones where these have a meaning here, the weights of losses those for GPT-2, but
for four. Coconut and SIM-CoT bring the state that is fed back to the embeddings' scale, which is small in these models.
Coconut begins with a chain that is learned, as published, but a stage has 40 or 80 updates at most. HRPO, which learns
by RL, has its supervised form, and its gates the rate of all else: 20 and 200 times as much is published beside 5e-6.
CoLaR answers with a latent for every token, and has the squared error that its code has. Soft Thinking is trained
(Latent-SFT).
"""

from dataclasses import replace

from latent.methods import Coconut, Codi, Colar, CoT, Hrpo, ICoT, Kava, MethodConfig, Pccot, Sim, Soft
from train.config import Arm, Experiment
from train.presets_search import cups_one_token, modular

RATE = 5e-3  # of arms whose rate is not searched yet: the middle one


def _beside(base: Experiment, **arms: tuple[MethodConfig, int]) -> Experiment:
    """The arms of `base` and further ones, trained as its chain is but for their updates."""
    how = replace(base.arms["cot"].train, lr=RATE)
    more = {name: Arm(method, replace(how, steps=steps)) for name, (method, steps) in arms.items()}
    short = replace(more["coconut"].train, warmup=20)  # its weights are trained already
    more["coconut"] = replace(more["coconut"], train=short, init="start")
    return replace(base, arms=base.arms | more)


def methods_one_token() -> Experiment:
    """Every method along the sequence beside the arms of `cups-one-token`: one branch, eight swaps.

    The last step of a chain is the answer: CODI, PCCoT and KaVa leave it out, and KaVa keeps the seven tokens before.
    No method is missing.
    """
    return _beside(
        cups_one_token(),
        icot=(ICoT(whole=400, remove_every=100), 1700),
        start=(CoT(), 600),
        coconut=(Coconut(n_latent=8, feedback="norm", first_stage=1, stage_steps=40), 420),
        sim=(Sim(n_latent=8, step_tokens=1, feedback="norm"), 660),
        codi=(Codi(n_latent=8), 400),
        pccot=(Pccot(n_latent=8), 360),
        kava=(Kava(n_latent=8), 340),
        soft=(Soft(n_latent=8), 1400),
        hrpo=(Hrpo(n_latent=8, gate_lr=1.0, decay_lr=1.0), 740),
        colar=(Colar(n_latent=8, r=1, latent_loss="mse"), 1400),
    )


def methods_modular() -> Experiment:
    """Every method along the sequence beside the arms of `modular`: a search.

    The answer is no step of a chain: CODI, PCCoT and KaVa keep the last one. PCCoT and KaVa refresh their three latents
    twice, for three times would be CODI. All but mixtures and their controls are told one chain. No method is missing.
    """
    return _beside(
        modular(),
        icot=(ICoT(whole=600, remove_every=200), 1700),
        start=(CoT(), 800),
        coconut=(Coconut(n_latent=3, feedback="norm", first_stage=1, stage_steps=80), 500),
        sim=(Sim(n_latent=3, step_tokens=1, feedback="norm"), 1350),
        codi=(Codi(n_latent=3, keep_last=True), 670),
        pccot=(Pccot(n_latent=3, iterations=2, keep_last=True), 500),
        kava=(Kava(n_latent=3, iterations=2, keep_last=True), 480),
        soft=(Soft(n_latent=3), 1500),
        hrpo=(Hrpo(n_latent=3, gate_lr=1.0, decay_lr=1.0), 850),
        colar=(Colar(n_latent=3, r=1, r_max=3, latent_loss="mse"), 1100),
    )

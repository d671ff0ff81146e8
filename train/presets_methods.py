"""Every method along the sequence beside the controls, at about equal compute: some 40 to 75 core-seconds an arm.

Order matters in both tasks, a state is one token, and chains and latents are as long: `methods-one-token` has one
branch, `methods-modular` many. Numbers of updates follow from the milliseconds that an update takes; those of a start
count. On `modular` mixtures and `sim-frontier`, which are told most, have what the chain has. The claims are in
paper/ablations.py, the search for every arm's rate in paper/searches.py.

The model is initialised as ours are and not as `cups-one-token` and `modular` have it, after CoT2: there embeddings are
so small that hidden states which are fed back among them are hardly learned (paper/LOG.md, 2026-11-27). The methods'
settings are the published ones where these have a meaning here, the weights of losses those for GPT-2, but for four.
Coconut and SIM-CoT bring the state that is fed back to the embeddings' scale. Coconut begins with a chain that is
learned, as published, but a stage has 120 or 350 updates at most. HRPO, which learns by RL, has its supervised form,
and its gates the rate of all else: 20 and 200 times as much is published beside 5e-6. CoLaR answers with a latent for
every token, and has the squared error that its code has. Soft Thinking is trained (Latent-SFT).
"""

from dataclasses import replace

from latent.methods import (
    Coconut,
    Codi,
    Colar,
    CoT,
    CoT2,
    FixedEmbedding,
    Hrpo,
    ICoT,
    Kava,
    MethodConfig,
    NoCoT,
    Pause,
    Pccot,
    Sim,
    Soft,
)
from train.config import SFT, Arm, Experiment
from train.presets_search import cups_one_token, modular


def _trained(base: Experiment, init: dict[str, str], arms: dict[str, tuple[MethodConfig, float, int]]) -> Experiment:
    """Arms on the task of `base`: of each the method, learning rate and updates. `init`: what an arm starts from."""
    how = SFT(batch=64, warmup=100, decay=1.0, decay_to=0.1)
    made = {}
    for name, (method, lr, steps) in arms.items():
        warmup = 20 if name in init else how.warmup  # some weights are trained already
        made[name] = Arm(method, replace(how, lr=lr, steps=steps, warmup=warmup), init.get(name))
    return replace(base, arms=made, model=replace(base.model, stock=False))


def methods_one_token() -> Experiment:
    """Every method along the sequence beside the controls, on cups of one token a state: one branch.

    The last step of a chain is the answer: CODI, PCCoT and KaVa leave it out, and KaVa keeps the seven tokens before.
    No method is missing.
    """
    mixtures = CoT2(n_latent=8)
    return _trained(
        cups_one_token(),
        {"coconut": "start"},
        {
            "no-cot": (NoCoT(), 3e-3, 5400),
            "cot": (CoT(), 1.5e-3, 3400),
            "pause": (Pause(mixtures), 3e-3, 2500),
            "fixed": (FixedEmbedding(mixtures), 1.5e-3, 2500),
            "icot": (ICoT(whole=600, remove_every=200), 3e-3, 2500),
            "start": (CoT(), 1.5e-3, 700),
            "coconut": (Coconut(n_latent=8, feedback="norm", first_stage=1, stage_steps=120), 1.5e-3, 1300),
            "sim": (Sim(n_latent=8, step_tokens=1, feedback="norm"), 6e-3, 1350),
            "cot2": (mixtures, 1.5e-3, 2800),
            "codi": (Codi(n_latent=8), 1.2e-2, 860),
            "pccot": (Pccot(n_latent=8), 6e-3, 900),
            "kava": (Kava(n_latent=8), 1.5e-3, 840),
            "soft": (Soft(n_latent=8), 1.5e-3, 3100),
            "hrpo": (Hrpo(n_latent=8, gate_lr=1.0, decay_lr=1.0), 1.5e-3, 1150),
            "colar": (Colar(n_latent=8, r=1, latent_loss="mse"), 6e-3, 2300),
        },
    )


def methods_modular() -> Experiment:
    """Every method along the sequence beside the controls, on the search of `modular`.

    All but mixtures and their controls are told one chain; `sim-frontier` is told what they are, and feeds back its
    hidden state. Mixtures are forced first, as in `modular`. The answer is no step of a chain: CODI, PCCoT and KaVa
    keep the last one. PCCoT and KaVa refresh their three latents twice, for three times would be CODI. No method is
    missing.
    """
    forced = CoT2(n_latent=3)
    return _trained(
        modular(),
        {"coconut": "start", "cot2": "forced"},
        {
            "no-cot": (NoCoT(), 1.5e-3, 5600),
            "cot": (CoT(), 6e-3, 2600),
            "pause": (Pause(forced), 3e-3, 2300),
            "fixed": (FixedEmbedding(forced), 3e-3, 2300),
            "icot": (ICoT(whole=800, remove_every=350), 6e-3, 2500),
            "start": (CoT(), 1.2e-2, 600),
            "coconut": (Coconut(n_latent=3, feedback="norm", first_stage=1, stage_steps=350), 6e-3, 1450),
            "sim": (Sim(n_latent=3, step_tokens=1, feedback="norm"), 3e-3, 3000),
            "forced": (forced, 6e-3, 1250),
            "cot2": (replace(forced, teacher=False), 6e-4, 650),
            "sim-frontier": (Sim(n_latent=3, told="frontier", head=True, feedback="norm"), 1.2e-2, 1550),
            "codi": (Codi(n_latent=3, keep_last=True), 3e-3, 1800),
            "pccot": (Pccot(n_latent=3, iterations=2, keep_last=True), 6e-3, 1150),
            "kava": (Kava(n_latent=3, iterations=2, keep_last=True), 1.2e-2, 1000),
            "soft": (Soft(n_latent=3), 1.2e-2, 2500),
            "hrpo": (Hrpo(n_latent=3, gate_lr=1.0, decay_lr=1.0), 1.2e-2, 2300),
            "colar": (Colar(n_latent=3, r=1, r_max=3, latent_loss="mse"), 6e-3, 3300),
        },
    )

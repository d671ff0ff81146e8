"""The ablations: each a claim, and the few lines that say which runs bear on it. `python -m paper.run` runs them.

To add one: an entry in `ABLATIONS`. Methods, environments and presets are named as `python -m train.latent` names them.
"""

from latent.methods import CoT, CoT2
from latent.plain import Change
from paper.controls import ANSWER_ONLY, CURRICULUM, LONG, ON_MODULAR, USUAL
from paper.design import COSTS, Ablation, Axis, Contrast, over
from train.presets_search import sft

# starts of RL, and updates of SFT that take as many core-seconds as RL from there (seed 0)
STARTS: Axis = {
    f"start at {a:g}": {"arms.half-trained.train.stop_at": a, "arms.sft.train.steps": steps}
    for a, steps in ((0.25, 860), (0.5, 620), (0.75, 540), (0.9, 540))
}

METHODS = ("icot", "coconut", "sim", "cot2", "codi", "pccot", "kava", "soft", "hrpo", "colar")  # along the sequence
BESIDE = ("no-cot", "cot", "pause", "fixed")
TRAINED_ON_ALL = ("no-cot", "cot", "cot2", "pause", "fixed")
UNSEEN = (1, 2, 3, 4, 5)  # seed 0 of mnns had been looked at before its claims were worded
OTHERS = (5, 6, 7, 8, 9)  # seeds that no other table has

RECIPES: Axis = {
    "step decoder": {},
    "curriculum": {"method": CURRICULUM, **LONG},
    "answer only": {"method": ANSWER_ONLY, **LONG},
}

NUMBERS: Axis = {
    f"{k} latent{'s' * (k > 1)}": {"method.n_latent": k, "method.stride": 32 // k, "method.step_tokens": 32 // k}
    for k in (1, 2, 4, 8)
}

# a state of cups in one to four tokens, written by a chain or held by a latent
STATES: Axis = {}
for n in (1, 2, 3, 4):
    words: Change = {"env.state_tokens": n % 4}  # 0 is one for each of the four cups
    STATES[f"latents, {n} a state"] = {**words, "method.stride": n, "method.step_tokens": n}
    STATES[f"chain, {n} a state"] = {**words, "method": CoT()}

SUPERVISION: Axis = {
    "weight 1": {},
    "weight 0.1": {"method.step_weight": 0.1},
    "weight 0": {"method.step_weight": 0.0},
    "every second latent": {"method.supervise_every": 2},
}

# chains cut to the sequential steps of latents, trained for as many core-seconds as 8 latents are, or more
CUT: Axis = {f"CoT, 1 step in {n}": {"method": CoT(every=n), "train.steps": 2300} for n in (2, 3, 4)}

# as many core-seconds as at width 64 with two layers; rates fall as the width grows
SIZES: Axis = {
    name: model
    | {
        f"arms.{arm}.train.steps": round(at * factor / 10) * 10
        for arm, at in (("cot", 1700), ("forced", 1200), ("cot2", 400))
    }
    | {f"arms.{arm}.train.lr": at * rate for arm, at in (("cot", 5e-3), ("forced", 5e-3), ("cot2", 2e-3))}
    for name, model, factor, rate in (
        ("width 32", {"model.n_embd": 32}, 1.4, 2.0),
        ("width 64", {"model.n_embd": 64}, 1.0, 1.0),
        ("width 128", {"model.n_embd": 128}, 0.57, 0.5),
        ("4 layers", {"model.n_layer": 4}, 0.58, 1.0),
    )
}

# what the second stage of `modular` is of: 400 updates at the same rate, from where the first stage of each ends
SECOND: Axis = {
    "mixtures, then their own": {},
    "mixtures, then forced again": {"arms.cot2.method": CoT2(n_latent=3)},
    "chain, then again": {"arms.cot2.method": CoT(), "arms.cot2.init": "cot"},
    "mixtures, their own throughout": {
        "arms.cot2.init": None,
        "arms.cot2.train": sft(5e-3, 1600),
    },
}


def second(n_latent: int, mixtures: float, chain: float) -> Axis:
    """The same of `mnns` and `signs`, at .4 of the first stages' rates, as there; in place of the arm `few-more`."""
    return {
        name: {
            "arms.few-more.method": method,
            "arms.few-more.init": start,
            "arms.few-more.train": sft(0.4 * lr, 400, warmup=20),
        }
        for name, method, start, lr in (
            ("mixtures, then their own", CoT2(n_latent=n_latent, teacher=False), "cot2", mixtures),
            ("chain, then again", CoT(), "cot", chain),
        )
    }


# of `methods-modular`, as long as mixtures and hidden states were first registered with
LONGER: Axis = {
    "longer": {
        "arms.cot.train.steps": 4200,
        "arms.sim-frontier.train.steps": 2400,
        "arms.forced.train.steps": 2000,
        "arms.cot2.train.steps": 1000,
    }
}


def beside_controls(**claims: dict) -> tuple[Contrast, ...]:
    """Every method against pause tokens and against the chain. `claims`: of either, by method."""
    return tuple(Contrast(a, b, claim=claims.get(b, {}).get(a)) for a in METHODS for b in ("pause", "cot"))


ABLATIONS: dict[str, Ablation] = {
    "latents": Ablation(
        claim="A latent for every step of the oracle solves more than fewer latents, and than its controls.",
        registered="4e22efc",
        base="sim",
        axes=(NUMBERS,),
        controls=(*USUAL, "pause, 4 latents"),
        core_minutes=33,
        diagnose=True,
        contrasts=(
            Contrast("8 latents", "4 latents", claim="more"),
            Contrast("4 latents", "2 latents"),
            Contrast("2 latents", "1 latent"),
            Contrast("8 latents", "pause", claim="more"),
            Contrast("8 latents", "fixed", claim="more"),
            Contrast("4 latents", "pause, 4 latents"),
            Contrast("4 latents", "pause, 4 latents", metric="pooled.accuracy"),
            Contrast("8 latents", "CoT"),
        ),
    ),
    "feedback": Ablation(
        claim="A norm or a projection of the hidden state, or soft tokens, fed back, solve more than the raw state.",
        registered="4e22efc",
        base="sim",
        axes=(over("method.feedback", "hidden", "norm", "project", "soft"),),
        controls=USUAL,
        core_minutes=13,
        costs=("sooner", *COSTS),
        contrasts=(
            Contrast("norm", "hidden", claim="more"),
            Contrast("project", "hidden", claim="more"),
            Contrast("soft", "hidden", claim="more"),
            Contrast("norm", "hidden", metric="sooner"),
            Contrast("project", "hidden", metric="sooner"),
            Contrast("soft", "hidden", metric="sooner"),
            Contrast("hidden", "fixed"),
        ),
    ),
    "recipe": Ablation(
        claim="A loss on every latent trains them sooner than a curriculum, and the answer alone does not train them.",
        registered="4e22efc",
        base="sim",
        axes=(RECIPES,),
        controls=(*USUAL, "pause, curriculum", "fixed, curriculum", "pause, answer only"),
        core_minutes=58,
        diagnose=True,
        costs=("sooner", *COSTS),
        contrasts=(
            Contrast("step decoder", "curriculum", metric="sooner", claim="less"),
            Contrast("step decoder", "curriculum"),
            Contrast("curriculum", "answer only", claim="more"),
            Contrast("step decoder", "pause"),
            Contrast("curriculum", "pause, curriculum"),
            Contrast("curriculum", "fixed, curriculum"),
            Contrast("answer only", "pause, answer only"),
        ),
    ),
    "positions": Ablation(
        claim="Latents at the positions of the tokens they replace are learned sooner than contiguous ones.",
        registered="4e22efc",
        base="sim",
        axes=(
            {name: RECIPES[name] for name in ("step decoder", "curriculum")},
            {"slots": {}, "contiguous": {"method.stride": 1}},
        ),
        controls=(*USUAL, "pause, contiguous", "fixed, contiguous", "pause, curriculum", "fixed, curriculum"),
        core_minutes=24,
        costs=("sooner", *COSTS),
        contrasts=(
            Contrast("step decoder, slots", "step decoder, contiguous", metric="sooner", claim="less"),
            Contrast("curriculum, slots", "curriculum, contiguous", metric="sooner", claim="less"),
            Contrast("step decoder, slots", "step decoder, contiguous"),
            Contrast("curriculum, slots", "curriculum, contiguous"),
            Contrast("step decoder, contiguous", "pause, contiguous"),
            Contrast("step decoder, contiguous", "fixed, contiguous"),
        ),
    ),
    "halting": Ablation(
        claim="A cost on latents makes RL stop earlier.",
        registered="4e22efc",
        base="cups",
        axes=({f"cost {c:g}": {"arms.latent-rlvr.train.latent_cost": c} for c in (0.0, 0.01, 0.02, 0.05)},),
        arms=("latent", "latent-rlvr"),
        controls=(*USUAL, "pause, cost 0.02", "fixed, cost 0.02"),
        core_minutes=25,
        metric="pooled.accuracy",
        costs=("pooled.used", "core_seconds"),
        contrasts=(
            Contrast("cost 0.01", "cost 0", metric="pooled.used", claim="less"),
            Contrast("cost 0.02", "cost 0", metric="pooled.used", claim="less"),
            Contrast("cost 0.05", "cost 0", metric="pooled.used", claim="less"),
            Contrast("cost 0", "latent"),
            Contrast("cost 0.01", "latent"),
            Contrast("cost 0.02", "latent"),
            Contrast("cost 0.05", "latent"),
            Contrast("cost 0.02", "pause, cost 0.02"),
            Contrast("cost 0.02", "fixed, cost 0.02"),
        ),
        figure="costs",
    ),
    "budget": Ablation(
        claim="At equal sequential steps latents solve more than a chain cut to that budget.",
        registered="4e22efc",
        base="sim",
        axes=(NUMBERS | CUT,),
        controls=USUAL,
        core_minutes=12,
        contrasts=(
            Contrast("8 latents", "CoT, 1 step in 3", claim="more"),
            Contrast("4 latents", "CoT, 1 step in 4", claim="more"),
            Contrast("8 latents", "CoT, 1 step in 2"),
            Contrast("8 latents", "CoT"),
        ),
        figure="costs",
    ),
    "rl": Ablation(
        claim="RL on verified answers helps where the start is right often enough; SFT of equal compute helps more.",
        registered="4e22efc",
        base="cups-rlvr",
        axes=(STARTS,),
        controls=(*USUAL, "pause, half-trained", "pause, rlvr", "fixed, half-trained", "fixed, rlvr"),
        core_minutes=33,
        metric="pooled.accuracy",
        costs=("main.accuracy", *COSTS),
        contrasts=(
            Contrast("start at 0.25, rlvr", "start at 0.25, half-trained"),
            Contrast("start at 0.25, rlvr", "start at 0.25, sft", claim="less"),
            Contrast("start at 0.5, rlvr", "start at 0.5, half-trained"),
            Contrast("start at 0.5, rlvr", "start at 0.5, sft", claim="less"),
            Contrast("start at 0.75, rlvr", "start at 0.75, half-trained", claim="more"),
            Contrast("start at 0.75, rlvr", "start at 0.75, sft", claim="less"),
            Contrast("start at 0.9, rlvr", "start at 0.9, half-trained", claim="more"),
            Contrast("start at 0.9, rlvr", "start at 0.9, sft", claim="less"),
            Contrast("pause, rlvr", "pause, half-trained"),
            Contrast("fixed, rlvr", "fixed, half-trained"),
        ),
    ),
    "depth": Ablation(
        claim="A loop along the depth trained with 4 to 12 recurrences holds at 16; with 8 or 12, it fails.",
        registered="4e22efc",
        base="recurrent",
        axes=(
            {
                "always 8 in training": {"method.r_min": 8, "method.r_max": 8},
                "always 12 in training": {"method.r_min": 12, "method.r_max": 12},
                "4 to 12 in training": {},
            },
        ),
        controls=(*USUAL, "one recurrence"),
        core_minutes=41,
        contrasts=(
            Contrast("4 to 12 in training", "4 to 12 in training", 16, steps_b=12),
            Contrast("4 to 12 in training", "always 12 in training", 16, claim="more"),
            Contrast("4 to 12 in training", "always 8 in training", 16, claim="more"),
            Contrast("4 to 12 in training", "always 12 in training"),
            Contrast("4 to 12 in training", "always 8 in training"),
            Contrast("4 to 12 in training", "one recurrence"),
        ),
        figure="sweep",
    ),
    "order": Ablation(
        claim="Where a search branches and order matters, mixtures told where it may stand solve more than a chain of "
        "as many steps, and than pause tokens and fixed passes that are told the same.",
        registered="6123d78",
        base="modular",
        axes=(),
        core_minutes=35,
        contrasts=(
            Contrast("cot2", "cot", claim="more"),
            Contrast("cot2", "pause", claim="more"),
            Contrast("cot2", "fixed", claim="more"),
            Contrast("cot2", "forced"),
            Contrast("forced", "cot"),
            Contrast("cot", "no-cot"),
            Contrast("pause", "no-cot"),
            Contrast("fixed", "no-cot"),
        ),
        figure="costs",
    ),
    "search": Ablation(
        claim="Where a search branches and order does not matter, mixtures told where it may stand solve more than a "
        "chain of as many steps; so do pause tokens that are told the same.",
        registered="6123d78",
        base="mnns",
        axes=(),
        arms=TRAINED_ON_ALL,
        seeds=UNSEEN,
        core_minutes=20,
        contrasts=(
            Contrast("cot2", "cot", claim="more"),
            Contrast("pause", "cot", claim="more"),
            Contrast("cot2", "pause"),
            Contrast("cot2", "fixed"),
            Contrast("fixed", "cot"),
            Contrast("cot", "no-cot"),
        ),
        figure="costs",
    ),
    "search-rl": Ablation(
        claim="After few solved problems, SFT on the gold answers of as many more as RL is told of solves more than RL "
        "over merged tokens does.",
        registered="6123d78",
        base="mnns",
        axes=(),
        arms=(
            "few",
            "few-more",
            "few-sft",
            "few-expert",
            "few-text",
            "few-rl",
            "few-cot",
            "few-cot-rl",
            *TRAINED_ON_ALL,
        ),
        seeds=UNSEEN,
        core_minutes=15,
        contrasts=(
            Contrast("few-sft", "few-rl", claim="more"),
            Contrast("few-rl", "few"),
            Contrast("few-expert", "few"),
            Contrast("few-text", "few"),
            Contrast("few-rl", "few-text"),
            Contrast("few-rl", "few-expert"),
            Contrast("few-more", "few"),
            Contrast("few-cot-rl", "few-cot"),
        ),
    ),
    "one-token": Ablation(
        claim="Where order matters and there is one branch, mixtures solve as much as a chain of as many steps, and "
        "more than pause tokens and fixed passes.",
        registered="5ff3e64",
        base="cups-one-token",
        axes=(),
        core_minutes=22,
        contrasts=(
            Contrast("cot2", "cot", claim="same"),
            Contrast("cot2", "pause", claim="more"),
            Contrast("cot2", "fixed", claim="more"),
            Contrast("cot", "no-cot"),
        ),
        figure="costs",
    ),
    "supervision": Ablation(
        claim="Every latent must be taught: with every second one, or none, taught, fewer problems are solved; a tenth "
        "of the weight does as well.",
        registered="5ff3e64",
        base="sim",
        axes=(SUPERVISION,),
        controls=USUAL,
        core_minutes=22,
        diagnose=True,
        costs=("sooner", *COSTS),
        contrasts=(
            Contrast("every second latent", "weight 1", claim="less"),
            Contrast("weight 0", "weight 1", claim="less"),
            Contrast("weight 0.1", "weight 1", claim="same"),
        ),
    ),
    "states": Ablation(
        claim="However many tokens a state takes, latents solve as much as a chain; what they save in steps is the "
        "tokens of a state beyond the first.",
        registered="5ff3e64",
        base="sim",
        axes=(STATES,),
        controls=USUAL,
        core_minutes=26,
        costs=(*COSTS, "sooner"),
        contrasts=tuple(Contrast(f"latents, {n} a state", f"chain, {n} a state", claim="same") for n in (1, 2, 3, 4)),
    ),
    "cue": Ablation(
        claim="Where moves cancel, so that nothing that is counted shows how many steps are needed, a stop taught by "
        "the chain, and RL on verified answers with a cost on latents, use fewer latents than all and solve as much.",
        registered="5ff3e64",
        base="cups-cue",
        axes=(),
        controls=tuple(f"{name}, pairs" for name in USUAL),
        core_minutes=45,
        metric="pooled.accuracy",
        costs=("pooled.used", "core_seconds"),
        contrasts=(
            Contrast("taught", "all", metric="pooled.used", claim="less"),
            Contrast("rl", "all", metric="pooled.used", claim="less"),
            Contrast("taught", "all", claim="same"),
            Contrast("rl", "all", claim="same"),
            Contrast("settled", "all", metric="pooled.used"),
            Contrast("rl", "taught", metric="pooled.used"),
            Contrast("rl", "start"),
        ),
        figure="costs",
    ),
    "scale": Ablation(
        claim="Where a search branches and order matters, mixtures solve more than a chain at every width and depth, "
        "at equal compute.",
        registered="5ff3e64",
        base="modular",
        axes=(SIZES,),
        arms=("cot", "cot2"),
        controls=ON_MODULAR,
        core_minutes=40,
        contrasts=tuple(Contrast(f"{size}, cot2", f"{size}, cot", claim="more") for size in SIZES),
        figure="costs",
    ),
    "told": Ablation(
        claim="Where a search branches and order matters, a chain that lists every branch solves more than a chain of "
        "one, in more tokens; mixtures told the answer alone solve no more than answering at once.",
        registered="5ff3e64",
        base="modular-told",
        axes=(),
        controls=("one chain", "mixtures, told the frontier", *ON_MODULAR),
        core_minutes=24,
        contrasts=(
            Contrast("cot-search", "one chain", claim="more"),
            Contrast("answer", "answering at once", claim="same"),
            Contrast("cot-ties", "one chain"),
            Contrast("sim", "mixtures, told the frontier"),
            Contrast("cot-search", "mixtures, told the frontier"),
        ),
        figure="costs",
    ),
    "methods-modular": Ablation(
        claim="At equal compute, where a search branches and order matters, mixtures and hidden states that are told "
        "the frontier (CoT2, SIM-CoT) solve more than a chain, and methods whose latents take the place of one chain "
        "without being its tokens (Coconut, SIM-CoT, CODI, PCCoT, KaVa), or that leave it out (iCoT), solve less.",
        registered="85dcda8",
        base="methods-modular",
        axes=(),
        arms=(*BESIDE, *METHODS, "sim-frontier"),
        core_minutes=75,
        costs=(*COSTS, "parameters"),
        contrasts=(
            *beside_controls(
                cot={"cot2": "more"} | dict.fromkeys(("coconut", "sim", "codi", "pccot", "kava", "icot"), "less"),
            ),
            Contrast("sim-frontier", "cot", claim="more"),
            Contrast("sim-frontier", "pause"),
            Contrast("sim-frontier", "cot2"),
        ),
    ),
    "methods-one-token": Ablation(
        claim="At equal compute, where order matters and there is one branch, methods that teach every latent its step "
        "(SIM-CoT, CoT2, Latent-SFT, HRPO, CoLaR), or come to it by a curriculum (Coconut), solve more than pause "
        "tokens; CODI, PCCoT and KaVa, which teach where thoughts must end, solve no more than they do.",
        registered="9ad3c2a",
        base="methods-one-token",
        axes=(),
        arms=(*BESIDE, *METHODS),
        core_minutes=75,
        costs=(*COSTS, "parameters"),
        contrasts=beside_controls(
            pause=dict.fromkeys(("sim", "cot2", "soft", "hrpo", "colar", "coconut"), "more")
            | dict.fromkeys(("codi", "pccot", "kava"), "not more"),
        ),
    ),
    "stages": Ablation(
        claim="What mixtures gain over a chain is not their second stage: after as many updates more, a chain, and "
        "mixtures that are forced again, solve less than mixtures trained on their own.",
        registered="cc892a3",
        base="modular",
        axes=(SECOND,),
        arms=("cot2",),
        controls=("one chain", *ON_MODULAR),
        core_minutes=22,
        contrasts=(
            Contrast("mixtures, then their own", "chain, then again", claim="more"),
            Contrast("mixtures, then their own", "mixtures, then forced again", claim="more"),
            Contrast("mixtures, then their own", "mixtures, their own throughout", claim="more"),
            Contrast("chain, then again", "one chain"),
        ),
        figure="costs",
    ),
    "stages-mnns": Ablation(
        claim="With a second stage of their own mixtures solve more than a chain where order does not matter, too.",
        registered="cc892a3",
        base="mnns",
        axes=(second(4, 1e-2, 2e-2),),
        arms=("few-more", *TRAINED_ON_ALL),
        seeds=UNSEEN,
        core_minutes=13,
        contrasts=(
            Contrast("mixtures, then their own", "chain, then again", claim="more"),
            Contrast("mixtures, then their own", "cot2"),
            Contrast("mixtures, then their own", "pause"),
            Contrast("mixtures, then their own", "fixed"),
        ),
        figure="costs",
    ),
    "longer": Ablation(
        claim="Trained half as long again, mixtures told the frontier solve more than a chain, and so do hidden states "
        "told the frontier.",
        registered="cc892a3",
        base="methods-modular",
        axes=(LONGER,),
        arms=("cot", "cot2", "sim-frontier"),
        controls=ON_MODULAR,
        core_minutes=19,
        contrasts=(
            Contrast("longer, cot2", "longer, cot", claim="more"),
            Contrast("longer, sim-frontier", "longer, cot", claim="more"),
            Contrast("longer, cot2", "longer, sim-frontier"),
        ),
        figure="costs",
    ),
    "signs-rl": Ablation(
        claim="After few solved problems, where a verifier takes any right solution, RL on it solves more than its "
        "start, over a chain's text and over merged tokens; more of the few does not.",
        registered="03c24cb",
        base="signs",
        axes=(),
        core_minutes=28,
        contrasts=(
            Contrast("few-cot-rl", "few-cot", claim="more"),
            Contrast("few-rl", "few", claim="more"),
            Contrast("few-cot-more", "few-cot", claim="not more"),
            Contrast("few-more", "few", claim="not more"),
            Contrast("few-cot-rl", "few-cot-expert"),
            Contrast("few-rl", "few-expert"),
            Contrast("few-rl", "few-text"),
            Contrast("few-cot-rl", "few-rl"),
            Contrast("cot", "cot2"),
        ),
    ),
    # of `told`, with the core-seconds that mixtures have
    "told-longer": Ablation(
        claim="Trained for as many core-seconds, a chain that lists every branch solves more than a chain of one, and "
        "no more than mixtures do in a quarter of its steps.",
        registered="c004e54",
        base="modular-told",
        axes=({"cot-search, as long": {"arms.cot-search.train.steps": 1640}},),
        arms=("cot-search",),
        controls=("one chain", "mixtures, told the frontier", *ON_MODULAR),
        seeds=(0, 1, 2, 3, 4, *OTHERS),
        core_minutes=35,
        contrasts=(
            Contrast("cot-search, as long", "one chain", claim="more"),
            Contrast("cot-search, as long", "mixtures, told the frontier", claim="not more"),
            Contrast("mixtures, told the frontier", "one chain"),
        ),
        figure="costs",
    ),
    "exchanged": Ablation(
        claim="Where a search branches and order matters, a state of another problem in a mixture's place leads to the "
        "answer that it should more often after the second stage than before it.",
        registered="c004e54",
        base="modular",
        axes=(),
        arms=("forced", "cot2"),
        controls=("one chain", *ON_MODULAR),
        seeds=OTHERS,
        core_minutes=9,
        diagnose=True,
        contrasts=(Contrast("cot2", "forced", metric="exchanged", claim="more"), Contrast("cot2", "forced")),
    ),
    "supervision-longer": Ablation(
        claim="Trained three times as long, latents that are taught at a tenth of the weight solve as much as those "
        "that are taught at the whole, and are as much the states.",
        registered="c004e54",
        base="sim",
        axes=({"weight 1": {}, "weight 0.1, longer": {"method.step_weight": 0.1, "train.steps": 4800}},),
        controls=USUAL,
        seeds=OTHERS,
        core_minutes=26,
        diagnose=True,
        contrasts=(
            Contrast("weight 0.1, longer", "weight 1", claim="same"),
            Contrast("weight 0.1, longer", "weight 1", metric="exchanged", claim="same"),
        ),
    ),
    "stages-signs": Ablation(
        claim="Where many answers are right, mixtures with a second stage of their own solve more than without it, and "
        "no more than a chain with as many updates.",
        registered="c004e54",
        base="signs",
        axes=(second(3, 2e-2, 1e-2),),
        arms=("few-more", *TRAINED_ON_ALL),
        core_minutes=7,
        contrasts=(
            Contrast("mixtures, then their own", "cot2", claim="more"),
            Contrast("mixtures, then their own", "chain, then again", claim="not more"),
            Contrast("chain, then again", "cot"),
        ),
        figure="costs",
    ),
    # one seed, for an arm takes half an hour; intervals are over problems alone
    "gsm8k": Ablation(
        claim="Half an hour of one core lets SmolLM2-135M solve more of GSM8K by a chain than at once; no method that "
        "thinks in latents (Coconut, SIM-CoT, CODI, Latent-SFT) solves more than pause tokens by as long.",
        registered="33bc9d2",
        base="gsm8k-smollm2",
        axes=(),
        arms=(*BESIDE, "coconut", "sim", "codi", "soft"),
        seeds=(0,),
        core_minutes=240,
        contrasts=(
            Contrast("cot", "no-cot", claim="more"),
            *(Contrast(arm, "pause", claim="not more") for arm in ("coconut", "sim", "codi", "soft")),
            *(Contrast(arm, "cot") for arm in ("coconut", "sim", "codi", "soft")),
        ),
        needs=("smollm2", "gsm8k_train.jsonl"),
    ),
}

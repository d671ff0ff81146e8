"""The thought loop and the log-probs through the Triton kernels give what plain torch gives."""

from collections import Counter
from copy import deepcopy

import pytest
import torch

from latent.config import Converged, Fixed, LearnedStop, ModelConfig
from latent.generate import decode, rollout, score
from latent.methods import NoCoT, Recurrent, Sim
from latent.thought import Greedy, Prompt, Sample
from tests import helpers
from tests.helpers import SMALL
from tests.kernels.check import DEVICE

pytestmark = pytest.mark.slow  # in Triton's interpreter

CONFIGS = [
    (Sim(n_latent=3, stride=2, feedback="norm", halt=LearnedStop(bias=-0.5)), "gpt2"),
    (Sim(n_latent=2), "qwen3"),
    (Recurrent(prelude=0, core=2, n_recurrence=3, halt=LearnedStop(bias=-0.5)), "gpt2"),
    (Recurrent(n_recurrence=2, coda=0), "qwen3"),
    (Sim(n_latent=3, feedback="soft", halt=Converged(by="kl", below=0.05, hits=1)), "llama"),
]


def small_reasoner(config, model=SMALL):
    """An untrained reasoner on whatever device runs kernels."""
    reasoner = helpers.small_reasoner(config, model)
    reasoner.method.to(DEVICE)
    return reasoner


def ragged_prompt(lengths) -> Prompt:
    prompt = helpers.ragged_prompt(lengths)
    return Prompt(prompt.ids_BT.to(DEVICE), prompt.mask_BT.to(DEVICE))


@pytest.fixture
def kernels(monkeypatch):
    return lambda which: monkeypatch.setenv("LATENT_KERNELS", which)


@pytest.fixture
def called(monkeypatch):
    """How often the fused loops ran as kernels, and contexts were branched."""
    from kernels.decode_step import LatentDecoder
    from kernels.recurrent_loop import RecurrentLoop
    from latent.cache import Context

    counts = Counter()
    for op, cls, name in (
        ("decode_step", LatentDecoder, "scan"),
        ("recurrent_loop", RecurrentLoop, "_some"),
        ("branch", Context, "branch"),
    ):
        real = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda *a, op=op, real=real, **k: (counts.update([op]), real(*a, **k))[1])
    return counts


@pytest.mark.parametrize("config, family", CONFIGS)
def test_thoughts_and_answers(config, family, kernels, called):
    reasoner = small_reasoner(config, ModelConfig(family=family, n_layer=2, n_embd=32, n_head=2, n_positions=64))
    method, seen, prompt = reasoner.method, {}, ragged_prompt((3, 5))
    for which in ("torch", "triton"):
        kernels(which)
        torch.manual_seed(3)
        with torch.no_grad():
            thought = method.think(prompt, Sample(), group=2)
            tokens = decode(method, thought, Greedy(), 3, None)
        seen[which] = thought, tokens
    recurrent = isinstance(config, Recurrent)  # one loop and an answer read off; else latents, and two more tokens,
    calls = 3 if DEVICE == "cpu" else 2  # which a GPU chooses in one call
    assert (called["recurrent_loop"], called["decode_step"]) == ((1, 0) if recurrent else (0, calls))
    (want, want_tokens), (got, got_tokens) = seen["torch"], seen["triton"]
    assert torch.equal(got.used_B, want.used_B) and torch.equal(got_tokens, want_tokens)
    torch.testing.assert_close(got.h_UTD, want.h_UTD, rtol=0, atol=1e-5)
    for a, b in zip(got.decisions, want.decisions):
        assert torch.equal(a.value_BT, b.value_BT) and torch.equal(a.mask_BT, b.mask_BT)
        torch.testing.assert_close(a.logp_BT, b.logp_BT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("room", [2**30, 0])
@pytest.mark.parametrize(
    "config, family, layers",
    [(Sim(n_latent=2), "gpt2", 2), (NoCoT(), "qwen3", 1), (Sim(n_latent=3, halt=LearnedStop(bias=-0.5)), "qwen3", 1)],
)
def test_rollouts_that_share_a_prompt(config, family, layers, room, kernels, called, monkeypatch):
    """Each has a copy of the prompt's K and V where there is room for it, else they read the same."""
    from kernels.decode_step import LatentDecoder

    monkeypatch.setattr(LatentDecoder, "limit", room)
    model = ModelConfig(family=family, n_layer=layers, n_embd=32, n_head=2, n_positions=64)
    method = small_reasoner(config, model).method
    seen = {}
    for which in ("torch", "triton"):
        kernels(which)
        torch.manual_seed(5)
        seen[which] = rollout(method, ragged_prompt((3, 5)), 4, 5, 2, 1.0)
    assert called["branch"] == (room == 0 and isinstance(getattr(config, "halt", Fixed()), Fixed))
    got, want = seen["triton"], seen["torch"]
    assert torch.equal(got.tokens_BT, want.tokens_BT) and len(set(map(tuple, want.tokens_BT.tolist()))) > 2
    for a, b in zip(got.decisions, want.decisions):
        assert torch.equal(a.mask_BT, b.mask_BT)
        torch.testing.assert_close(a.logp_BT, b.logp_BT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rollouts_that_share_a_prompt_under_autocast(family, kernels, called, monkeypatch):
    """Queries and keys come out of rotations in fp32, values in bfloat16."""
    from kernels.decode_step import LatentDecoder

    monkeypatch.setattr(LatentDecoder, "limit", 0)
    kernels("triton")
    method = small_reasoner(Sim(n_latent=1), ModelConfig(family=family, n_layer=1, n_embd=32, n_head=2)).method
    with torch.autocast(DEVICE, torch.bfloat16):
        rolled = rollout(method, ragged_prompt((3, 5)), 2, 3, None, 1.0)
        again = score(method, rolled, 1.0)
    assert called["branch"] == 1
    torch.testing.assert_close(again[-1].logp_BT, rolled.decisions[-1].logp_BT, rtol=0, atol=0.1)


def test_scores_and_their_gradients(kernels):
    method = small_reasoner(CONFIGS[0][0]).method
    kernels("torch")
    rolled = rollout(method, ragged_prompt((3, 5)), 3, 3, None, 1.0)
    found = {}
    for which in ("torch", "triton"):
        kernels(which)
        method.zero_grad()
        text = score(method, rolled, 0.8)[-1]
        (text.logp_BT.sum() + 0.3 * text.entropy_BT.sum()).backward()
        grads = [p.grad.clone() for p in method.parameters() if p.grad is not None]
        found[which] = [text.logp_BT.detach(), text.entropy_BT.detach(), *grads]
    for got, want in zip(found["triton"], found["torch"]):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def test_training_and_copies_after_a_fused_step(kernels):
    """A fused optimizer changes weights without saying so; a copy has weights of its own."""
    for config in (Sim(n_latent=2), Recurrent(n_recurrence=2)):
        method = small_reasoner(
            config, ModelConfig(family="llama", n_layer=2, n_embd=32, n_head=2, n_positions=64)
        ).method
        optimizer, prompt = torch.optim.AdamW(method.parameters(), lr=0.1, fused=True), ragged_prompt((3, 5))
        kernels("triton")
        with torch.no_grad():
            method.think(prompt, Greedy())
        method.think(prompt, Greedy()).h_UTD.sum().backward()
        optimizer.step()
        copy, found = deepcopy(method), {}
        for which in ("torch", "triton"):
            kernels(which)
            with torch.no_grad():
                found[which] = [m.think(prompt, Greedy()).h_UTD for m in (method, copy)]
        for got in found["triton"]:
            torch.testing.assert_close(got, found["torch"][0], rtol=0, atol=1e-5)


def test_a_family_without_a_fused_step_falls_back_or_says_so(kernels):
    from transformers import OPTConfig, OPTForCausalLM

    from latent import methods
    from latent.backbone import Backbone

    lm = OPTForCausalLM(
        OPTConfig(vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
                  word_embed_proj_dim=16, max_position_embeddings=32)
    )  # fmt: skip
    method = methods.build(Sim(n_latent=2, stride=1), Backbone(lm.eval())).to(DEVICE)
    with torch.no_grad():
        kernels("auto")
        assert method.think(ragged_prompt((3, 5)), Greedy()).states_UKD.shape == (2, 3, 16)
        kernels("triton")
        with pytest.raises(ValueError, match="no fused step for this OPTForCausalLM"):
            method.think(ragged_prompt((3, 5)), Greedy())


def test_an_unknown_implementation(kernels):
    kernels("cuda")
    with pytest.raises(ValueError, match="kernels must be one of auto, torch, triton, got 'cuda'"):
        small_reasoner(CONFIGS[1][0]).method.backbone.logprob(
            torch.zeros(1, 32, device=DEVICE), torch.zeros(1, dtype=torch.long, device=DEVICE)
        )

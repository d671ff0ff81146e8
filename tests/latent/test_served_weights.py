"""Fused kernels under autocast and with adapters: they read copies, which follow the weights."""

import pytest
import torch

from latent import backbone, lora
from latent.config import ModelConfig
from latent.fused import ServedWeights
from latent.generate import decode
from latent.methods import Sim, build
from latent.thought import Greedy
from tests.helpers import ragged_prompt
from tests.kernels.check import DEVICE


def model(family: str, rank: int = 0):
    """An untrained method, with adapters that do something if `rank`."""
    torch.manual_seed(0)
    body = backbone.from_scratch(ModelConfig(family=family, n_layer=1, n_embd=32, n_head=2, n_positions=64), 13, 0, 1)
    method = build(Sim(n_latent=2), body)
    if rank:
        pytest.importorskip("peft")
        lora.add(body.lm, rank, 8.0)
        for name, p in body.lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.3)
    return method.to(DEVICE).eval()


def answer(method, autocast: bool):
    """States of two latents and greedy text, by whatever LATENT_KERNELS says."""
    torch.manual_seed(1)  # for the prompt
    prompt, choose = ragged_prompt((3, 5)), Greedy()
    prompt.ids_BT, prompt.mask_BT = prompt.ids_BT.to(DEVICE), prompt.mask_BT.to(DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        thought = method.think(prompt, choose)
        return thought.states_UKD.float(), decode(method, thought, choose, 2, None)


@pytest.mark.slow  # in Triton's interpreter
@pytest.mark.parametrize("family, rank, autocast", [("gpt2", 4, True), ("qwen3", 0, True), ("qwen3", 4, False)])
def test_kernels_serve_what_the_modules_compute(family, rank, autocast, monkeypatch):
    """At most twice as wrong as the modules under the same autocast, both against the modules in fp32."""
    method = model(family, rank)
    monkeypatch.setenv("LATENT_KERNELS", "torch")
    want, _ = answer(method, False)
    theirs, _ = answer(method, autocast)
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    ours, _ = answer(method, autocast)
    assert (ours - want).norm() <= max(2 * float((theirs - want).norm()), 1e-5 * float(want.norm()))
    assert (ours - want).norm() > 0 or not autocast


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_kernels_follow_the_weights(rank, monkeypatch):
    """A fused optimizer makes no new version, `load_state_dict` does: both are seen, and graphs' addresses stay."""
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    method = model("qwen3", rank)
    before, _ = answer(method, True)
    op = method.backbone.fused._ops["decode_step"][1]
    held = {n: p.detach().clone() for n, p in method.named_parameters()}
    trained = [p for p in method.backbone.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(trained, lr=0.1, fused=True).step()
    after, _ = answer(method, True)
    monkeypatch.setenv("LATENT_KERNELS", "torch")
    (want, _), (theirs, _) = (answer(method, autocast) for autocast in (False, True))
    assert (before - want).norm() > 0.1 * want.norm()
    assert (after - want).norm() <= 2 * (theirs - want).norm()
    method.load_state_dict(held)
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    assert torch.equal(answer(method, True)[0], before)
    assert method.backbone.fused._ops["decode_step"][1] is op


def test_copies_are_written_only_when_something_changed():
    linear, served = torch.nn.Linear(3, 2), ServedWeights()
    weight, bias = served.affine(linear, torch.bfloat16)
    served.refresh()
    linear.weight.data.fill_(7.0)  # says nothing
    served.refresh()
    assert not (weight == 7).any()
    with torch.no_grad():
        linear.bias.fill_(3.0)
    served.refresh()
    assert (weight == 7).all() and (bias == 3).all() and weight.dtype == torch.bfloat16 and weight.shape == (3, 2)
    assert served.affine(linear, torch.bfloat16)[0].data_ptr() == weight.data_ptr()
    assert served.affine(torch.nn.ReLU(), torch.bfloat16) is None

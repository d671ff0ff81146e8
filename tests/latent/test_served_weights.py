"""Fused kernels under autocast and with adapters: they read copies, which follow the weights."""

import pytest
import torch

from latent import lora, make
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
    body = make.from_scratch(ModelConfig(family=family, n_layer=1, n_embd=32, n_head=2, n_positions=64), 13, 0, 1)
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
    op = method.backbone.fused._ops["decode_step", torch.bfloat16][1]
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
    assert method.backbone.fused._ops["decode_step", torch.bfloat16][1] is op


def served(weights: ServedWeights, module):
    """The merged weight (in, out) of one module, as kernels would read it now."""
    found = weights.affine(module, torch.float32)
    weights.refresh()
    return found[0].clone()


def test_adapters_that_are_switched_and_weights_that_are_replaced_are_seen():
    module, weights = model("gpt2", 4).backbone.layers.blocks[0].attn.c_attn, ServedWeights()
    base, delta = module.get_base_layer().weight.detach(), module.get_delta_weight("default").detach()
    torch.testing.assert_close(served(weights, module), base + delta)
    module.enable_adapters(False)
    torch.testing.assert_close(served(weights, module), base)
    module.enable_adapters(True)
    module.scaling["default"] *= 2
    torch.testing.assert_close(served(weights, module), base + 2 * delta)
    for _ in range(2):  # new parameters, whose versions begin at 0
        state = {name: p.detach() + 1 for name, p in module.get_base_layer().named_parameters()}
        module.get_base_layer().load_state_dict(state, assign=True)
        torch.testing.assert_close(served(weights, module), state["weight"] + 2 * delta)
    module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    assert weights.affine(module.train(), torch.float32) is None


def test_copies_made_in_inference_mode_are_written_outside_of_it():
    linear, weights = torch.nn.Linear(3, 2), ServedWeights()
    with torch.inference_mode():
        served(weights, linear)
    with torch.no_grad():
        linear.weight.fill_(2.0)
    assert (served(weights, linear) == 2).all()


@pytest.mark.slow
def test_what_a_graph_would_read_of_the_head_is_up_to_date_before_it_runs(monkeypatch):
    """Soft tokens under autocast multiply a copy of the head, which only Python can write anew."""
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    torch.manual_seed(0)
    config = ModelConfig(family="llama", n_layer=1, n_embd=32, n_head=2, n_positions=64)
    method = build(Sim(n_latent=2, feedback="soft"), make.from_scratch(config, 13, 0, 1)).to(DEVICE).eval()
    body, h_BD = method.backbone, torch.randn(2, 32, device=DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        copy = body.fused.operands(h_BD)[1]
    with torch.no_grad():
        body.lm.get_output_embeddings().weight.add_(1.0)
        with torch.autocast(DEVICE, torch.bfloat16):
            assert any(x is copy or x.data_ptr() == copy.data_ptr() for x in body.fused.read_by(method.feedback, h_BD))
    assert torch.equal(copy, body.lm.get_output_embeddings().weight.detach().to(torch.bfloat16))


def test_copies_are_written_only_when_something_changed():
    linear, served = torch.nn.Linear(3, 2), ServedWeights()
    weight, bias = served.affine(linear, torch.bfloat16)
    served.refresh()
    linear.weight.data.fill_(7.0)  # says nothing
    served.affine(linear, torch.bfloat16)
    served.refresh()
    assert not (weight == 7).any()
    with torch.no_grad():
        linear.bias.fill_(3.0)
    assert served.affine(linear, torch.bfloat16)[0].data_ptr() == weight.data_ptr()
    served.refresh()
    assert (weight == 7).all() and (bias == 3).all() and weight.dtype == torch.bfloat16 and weight.shape == (3, 2)
    assert served.affine(torch.nn.ReLU(), torch.bfloat16) is None
    served.refresh()  # nobody has asked for it since
    assert not served._copies

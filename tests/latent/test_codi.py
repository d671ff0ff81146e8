"""CODI's loss, written out by hand on the family's own forward, without cache, batch or tap."""

import pytest
import torch

from kernels.errors import UserError
from latent.config import ModelConfig
from latent.methods import Codi, NoCoT, Pause
from tests.helpers import small_reasoner
from tests.latent.by_hand import codi_loss, one_by_one, ragged_batch

MODEL = ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=64)


@pytest.mark.parametrize(
    "config",
    [
        Codi(n_latent=3),
        Codi(n_latent=2, stride=3, distill_weight=20.0, teacher_weight=0.5, keep_last=True),
        Codi(n_latent=1, feedback="hidden"),
        Pause(Codi(n_latent=3, stride=2)),
    ],
    ids=["paper", "weighted", "without projection", "pause"],
)
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_the_loss_and_its_gradient_are_those_written_out(config, family):
    torch.manual_seed(0)
    reasoner = small_reasoner(config, ModelConfig(family=family, n_layer=2, n_embd=32, n_head=2), dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    loss, logged = method.loss(batch)
    want = codi_loss(method, batch, one_by_one)
    close = 1e-9 if family == "gpt2" else 1e-5  # Qwen3's RMSNorm rounds to fp32 in transformers
    torch.testing.assert_close(loss, want, rtol=0, atol=close)
    weights = [p for n, p in method.named_parameters() if p.requires_grad]
    for got, hand in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (loss, want)), strict=True):
        assert (got is None) == (hand is None)
        if got is not None:
            torch.testing.assert_close(got, hand, rtol=0, atol=10 * close)
    weighted = logged["ce"] + method.config.teacher_weight * logged["teacher_ce"]
    torch.testing.assert_close(weighted + method.config.distill_weight * logged["distill"], loss.detach())


def test_only_the_student_moves_towards_the_teacher():
    """The distance alone: a change of the chain's embeddings changes it, and yet they get no gradient from it."""
    config = Codi(n_latent=2, keep_last=True)
    reasoner = small_reasoner(config, MODEL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    distance = method.terms(batch)[0][2].taken()
    table = method.backbone.lm.get_input_embeddings().weight
    (grad,) = torch.autograd.grad(distance, table)
    prompts = {i for row in batch.prompt.ids_BT.tolist() for i in row}
    in_chain = sorted({i for steps in batch.steps for step in steps for i in step} - prompts)
    assert in_chain and not grad[in_chain].any() and grad.any()
    table.data[in_chain] += 0.1
    assert (method.terms(batch)[0][2].taken() - distance).abs() > 1e-4


def test_without_latents_it_is_trained_on_the_answer_alone():
    codi, plain = (small_reasoner(config, MODEL, dtype=torch.float64) for config in (Codi(n_latent=0), NoCoT()))
    plain.method.backbone.load_state_dict(codi.method.backbone.state_dict())
    got, want = (r.method.loss(ragged_batch(r.codec))[0] for r in (codi, plain))
    assert torch.equal(got, want)


def test_what_it_needs_to_read_its_teacher():
    method = small_reasoner(Codi(n_latent=3, stride=2), MODEL).method
    assert method.positions_needed(10, [4, 4, 4], 4) == 10 + 8 + 3  # the chain without its last step
    assert method.positions_needed(10, [4], 4) == 10 + 6 + 3  # the latents
    method = small_reasoner(Codi(n_latent=3, keep_last=True), MODEL).method
    assert method.positions_needed(10, [4, 4, 4], 4) == 10 + 12 + 3


def test_weights_below_zero_are_refused():
    for name in ("distill_weight", "teacher_weight"):
        with pytest.raises(UserError, match=rf"method\.{name} must be at least 0, got -1"):
            Codi(**{name: -1.0})

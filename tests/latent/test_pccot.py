"""PCCoT's latents by Jacobi iteration written out by hand, and the loop that they become."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.errors import UserError
from latent import methods
from latent.config import LearnedStop, ModelConfig
from latent.generate import rollout, score
from latent.methods import Codi, FixedEmbedding, Pause, Pccot
from latent.policies import Gaussian
from latent.thought import Greedy
from tests.helpers import SMALL, cups_batch, ragged_prompt, row_of, small_reasoner
from tests.latent.by_hand import codi_loss, places, ragged_batch, states_of


def together(method, ids):
    """What feeds the latents (1, K, D) in the last of T passes, each over the whole sequence."""
    n, k = len(ids), method.config.n_latent
    prompt, x = method.backbone.embed(ids[None]), method.start.expand(1, k, -1)
    for _ in range(method.config.iterations):
        h_TD = states_of(method.backbone, torch.cat([prompt, x], 1), places(method, n))[-1]
        x = torch.stack([method.feedback(h_TD[n - 1 + i : n + i])[0] for i in range(k)])[None]
    return x


@pytest.mark.parametrize(
    "config",
    [Pccot(n_latent=4, iterations=2), Pccot(n_latent=3, iterations=1, stride=2), Pccot(n_latent=2, iterations=4)],
)
def test_the_loss_and_its_gradient_are_those_written_out(config):
    torch.manual_seed(0)
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    loss, _ = method.loss(batch)
    want = codi_loss(method, batch, together)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-10)
    weights = list(method.parameters())
    for got, hand in zip(*(torch.autograd.grad(x, weights, allow_unused=True) for x in (loss, want)), strict=True):
        assert (got is None) == (hand is None)
        if got is not None:
            torch.testing.assert_close(got, hand, rtol=0, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7])
def test_so_many_latents_as_there_were_refreshes_are_those_of_the_loop(iterations):
    """With as many refreshes as latents, or more, everything is CODI's: states, loss and gradients."""
    method = small_reasoner(Pccot(n_latent=4, iterations=iterations, stride=2), SMALL, dtype=torch.float64).method
    codi = methods.build(Codi(n_latent=4, stride=2), method.backbone).double()
    codi.feedback.load_state_dict(method.feedback.state_dict())
    prompt = ragged_prompt()
    with torch.no_grad():
        got, want = (m.think(prompt, Greedy()).states_UKD for m in (method, codi))
    equal = [torch.allclose(got[:, i], want[:, i], rtol=0, atol=1e-10) for i in range(5)]
    assert equal == [i <= iterations for i in range(5)]
    if iterations >= 4:
        batch = ragged_batch(small_reasoner(Codi(), SMALL).codec)
        losses = [m.loss(batch)[0] for m in (method, codi)]
        torch.testing.assert_close(*losses, rtol=0, atol=1e-10)
        grads = [torch.autograd.grad(x, list(m.backbone.parameters())) for x, m in zip(losses, (method, codi))]
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_what_goes_into_a_latent_can_be_edited_in_every_pass():
    """Latent 1 of 3 is put in by hand; what follows rests on it, what comes before does not."""
    method = small_reasoner(Pccot(n_latent=3, iterations=2), SMALL, dtype=torch.float64).method
    prompt, mine = ragged_prompt(), torch.randn(32, dtype=torch.float64)
    with torch.no_grad():
        plain = method.think(prompt, Greedy()).states_UKD
        same = method.think(prompt, Greedy(), edit=lambda i, x: x).states_UKD
        put = method.think(prompt, Greedy(), edit=lambda i, x: mine.expand_as(x) if i == 1 else x).states_UKD
    assert torch.equal(same, plain) and torch.equal(put[:, :2], plain[:, :2])
    for b in range(3):
        ids = row_of(prompt, b).ids_BT[0]
        fixed, x = method.backbone.embed(ids[None]), method.start.expand(1, 3, -1)
        for _ in range(2):
            h_TD = states_of(method.backbone, torch.cat([fixed, x], 1), places(method, len(ids)))[-1][len(ids) - 1 :]
            x = method.feedback(h_TD[:3])[None]
            x = torch.stack([x[0, 0], mine, x[0, 2]])[None]
        h_TD = states_of(method.backbone, torch.cat([fixed, x], 1), places(method, len(ids)))[-1][len(ids) - 1 :]
        torch.testing.assert_close(put[b], h_TD, rtol=0, atol=1e-10)


def test_rl_learns_from_stops_and_texts():
    method = small_reasoner(Pccot(n_latent=4, iterations=2, halt=LearnedStop(bias=-0.5)), SMALL, dtype=torch.float64)
    rolled = rollout(method.method, ragged_prompt(), 6, 3, None, 1.0)
    assert [d.kind for d in rolled.decisions] == ["halt", "token"] and len(set(rolled.used_B.tolist())) > 1
    for now, was in zip(score(method.method, rolled, 1.0), rolled.decisions):
        torch.testing.assert_close(now.logp_BT[was.mask_BT], was.logp_BT[was.mask_BT], rtol=0, atol=1e-10)


def test_controls_are_computed_as_they_are_of_codi():
    for control in (Pause, FixedEmbedding):
        of = [control(config) for config in (Pccot(n_latent=3), Codi(n_latent=3))]
        one, other = (small_reasoner(config, SMALL, dtype=torch.float64).method for config in of)
        other.load_state_dict({n: p for n, p in one.state_dict().items() if n != "start"})
        prompt = ragged_prompt()
        with torch.no_grad():
            got, want = (m.think(prompt, Greedy()).states_UKD for m in (one, other))
        assert torch.equal(got, want) and one.passes(3, 4) == other.passes(3, 4)


def test_what_it_costs():
    """Refreshes as torch counts them: one pass over a prompt that is read before, and T + 1 over the latents."""
    model = ModelConfig(n_layer=2, n_embd=32, n_head=2)
    three, two = (small_reasoner(Pccot(n_latent=6, iterations=t), model).method for t in (3, 2))
    assert three.passes(6, 4) == 1 + 4 + 3 and three.passes(0, 4) == 4
    prompt = cups_batch(small_reasoner(Codi()).codec, 1).prompt
    counted = []
    for method in (three, two):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            method.think(prompt, Greedy())
        counted.append(counter.get_total_flops())
    attention = 2 * 4 * 32 * (6 * prompt.ids_BT.shape[1] + 6 * 7 / 2)  # fused, so not counted
    assert three.flops(9, 6, 4) - two.flops(9, 6, 4) == counted[0] - counted[1] + attention
    assert prompt.ids_BT.shape[1] == 9


def test_what_is_out_of_range_is_refused():
    with pytest.raises(UserError, match="iterations must be at least 1, got 0"):
        Pccot(iterations=0)
    with pytest.raises(UserError, match=r"method\.policy of pccot must be none"):
        Pccot(policy=Gaussian())

"""Costs against torch's own FLOP counter on a single uncached forward."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latent.config import ModelConfig
from latent.methods import CoT, NoCoT, Recurrent, Sim
from tests.helpers import small_reasoner


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("config, used, tokens", [(NoCoT(), 0, 4), (CoT(), 0, 36), (Sim(), 8, 4)])
def test_flops_of_a_sequence_are_those_counted(family, config, used, tokens):
    reasoner = small_reasoner(config, ModelConfig(family=family))
    n = 9 + used + tokens - 1
    reasoner.method.backbone.lm.config._attn_implementation = "eager"  # the counter does not know the fused one
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        h = reasoner.method.backbone.decoder[0](torch.zeros(1, n, dtype=torch.long), use_cache=False).last_hidden_state
        reasoner.method.backbone.head(h[:, -tokens:])
    attention_counted_in_full = 2 * 4 * 64 * (n * n - n * (n + 1) / 2)  # the counter ignores the causal mask
    assert reasoner.method.flops(9, used, tokens) == counter.get_total_flops() - attention_counted_in_full
    assert reasoner.method.passes(used, tokens) == used + tokens


@pytest.mark.parametrize("feedback", ["hidden", "norm", "project", "soft"])
def test_flops_of_what_is_fed_back_come_on_top_for_every_latent(feedback):
    reasoner = small_reasoner(Sim(feedback=feedback), ModelConfig())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reasoner.method.feedback(torch.zeros(1, 64))
    more = reasoner.method.flops(9, 8, 4) - small_reasoner(Sim(), ModelConfig()).method.flops(9, 8, 4)
    assert more == 8 * counter.get_total_flops()


def test_flops_of_a_loop_along_the_depth():
    reasoner = small_reasoner(Recurrent(n_recurrence=3), ModelConfig())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reasoner.tokens(["01 23 . . . . . ."])
    attention = 4 * 4 * 64 * 12 * 13 / 2  # prelude and three recurrences, causal; fused, so not counted
    assert reasoner.method.flops(9, 3, 4) == counter.get_total_flops() + attention
    assert reasoner.method.passes(3, 4) == 3

"""iCoT's schedule, offsets and loss, and the optimizer that starts afresh, worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from eval.environments import Cups
from kernels.errors import UserError
from latent.config import ModelConfig
from latent.methods import ICoT
from latent.text import Batch
from tests.helpers import SMALL, cups_batch, small_reasoner
from tests.latent.by_hand import ragged_batch
from tests.train.by_hand import AdamW, assert_same_weights, trainer_of
from train import distill
from train.config import SFT, Run


def offsets(rows: int, smoothing: float, generator: torch.Generator) -> list[int]:
    """The largest o with P(offset >= o) = exp(-smoothing o) above a uniform draw."""
    found = []
    for u in torch.rand(rows, generator=generator).tolist():
        o = 0
        while math.exp(-smoothing * (o + 1)) >= 1 - u:
            o += 1
        found.append(o)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("updates, gone", [(0, 0), (5, 1), (13, 5), (29, 13)])
def test_the_loss_is_the_cross_entropy_of_what_remains(side, updates, gone):
    """Chains of 12, 4 and 8 tokens, offsets drawn by hand from the same numbers; two updates a token, three before."""
    config = ICoT(whole=3, remove_every=2, smoothing=0.5, side=side)
    reasoner = small_reasoner(config, SMALL, dtype=torch.float64)
    method, batch = reasoner.method, ragged_batch(reasoner.codec)
    method.updates += updates + 1  # that were made, and this one
    batch.generator = torch.Generator().manual_seed(5)
    drawn = offsets(3, 0.5, torch.Generator().manual_seed(5))
    assert len(set(drawn)) > 1
    total, count, left = 0.0, 0, 0
    for ids, real, steps, answer, o in zip(
        batch.prompt.ids_BT, batch.prompt.mask_BT, batch.steps, batch.answers, drawn, strict=True
    ):
        chain = [token for step in steps for token in step]
        for _ in range(min(gone + o, len(chain))):
            chain.pop(0 if side == "left" else -1)
        left += len(chain)
        text = torch.tensor([*chain, *answer])
        logits = method.backbone.lm(torch.cat([ids[real], text])[None], use_cache=False).logits[
            0, int(real.sum()) - 1 :
        ]
        total, count = total + F.cross_entropy(logits[:-1], text, reduction="sum"), count + len(text)
    loss, logged = method.loss(batch)
    torch.testing.assert_close(loss, total / count, rtol=0, atol=1e-10)
    assert float(logged["chain_left"]) == pytest.approx(left / 3)


def test_offsets_follow_the_exponential_law():
    method = small_reasoner(ICoT(smoothing=0.7), SMALL).method
    n = 40_000
    batch = Batch(None, [[(1,) * 30]] * n, [(1,)] * n, 0, torch.Generator().manual_seed(0))
    batch.prompt = cups_batch(small_reasoner(ICoT(), SMALL).codec, 1).prompt
    lost = torch.tensor([30 - len(chain) for chain in method.left(batch)])
    for o in range(6):
        p = (1 - math.exp(-0.7)) * math.exp(-0.7 * o)
        assert abs(float((lost == o).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_the_schedule_and_the_stages_it_makes():
    """Tokens gone before each update, and before which ones the moments are forgotten: not once no chain is left."""
    method = small_reasoner(ICoT(whole=2, remove_every=3, all_beyond=4), SMALL).method
    removed, begun = [], []
    for _ in range(20):
        begun.append(method.begin_update())
        removed.append(method.removed)
        none_left = method.removed is None
        method.learned({"chain_left": torch.tensor(0.0 if none_left else 1.0)})
        assert method.removed == removed[-1]  # what is judged now is what was trained
    assert method.least_updates(30) == 14 and method.least_updates(2) == 8
    assert removed == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, *[None] * 6]
    assert [i for i, first in enumerate(begun) if first] == [5, 8, 11, 14]
    assert method.steps_written(8) == 0 and method.tokens_written(32, 8) == 0


def test_a_stage_writes_as_many_tokens_as_it_is_taught():
    reasoner = small_reasoner(ICoT(remove_every=1), SMALL)
    assert reasoner.max_tokens == 36 and reasoner.method.steps_written(8) == 8
    for _ in range(6):  # on 32 tokens of a chain, 31, ..., 27
        reasoner.method.begin_update()
        reasoner.method.learned({"chain_left": torch.tensor(1.0)})
    assert reasoner.max_tokens == 31 and len(reasoner.tokens(["01 23 . . . . . ."])[0][0]) == 31
    for _ in range(40):
        reasoner.method.begin_update()
        reasoner.method.learned({"chain_left": torch.tensor(0.0)})
    assert reasoner.max_tokens == 4 and reasoner.method.steps_written(8) == 0


@pytest.mark.parametrize("reset", [True, False])
def test_the_optimizer_starts_afresh_where_a_token_goes(reset, tmp_path):
    """Five updates by AdamW written out, anew before the third and the fifth."""
    run = Run(Cups(), ModelConfig(n_layer=1, n_embd=16, n_head=2), ICoT(remove_every=2, reset_optimizer=reset),
              SFT(steps=5, batch=4, lr=0.01, warmup=0, decay=0.0, log_every=1))  # fmt: skip
    trainer, env, mine = trainer_of(run, tmp_path)
    distill.fit(trainer, env)
    by_hand = AdamW(mine, run.train)
    for step in range(5):
        if reset and step in (2, 4):
            by_hand = AdamW(mine, run.train)
        batch = Batch.of(env.train_batch(run.seed, step, 4), trainer.reasoner.codec, generator=trainer.generator(step))
        mine.begin_update()
        loss, logged = mine.loss(batch)
        by_hand.step(loss, 1.0)
        mine.learned(logged)
    assert_same_weights(trainer.method, mine)


def test_what_is_out_of_range_is_refused():
    for name, value, least in (("whole", -1, 0), ("remove_every", 0, 1), ("all_beyond", -2, 0), ("smoothing", -1.0, 0)):
        with pytest.raises(UserError, match=rf"{name} must be at least {least}, got {value}"):
            ICoT(**{name: value})

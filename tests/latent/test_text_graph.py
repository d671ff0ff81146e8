"""Text that is chosen within a graph: the tokens, log-probs and entropies of a rollout worked out by hand."""

from collections import Counter

import pytest
import torch
from torch.distributions import Categorical

from latent.config import ModelConfig
from latent.generate import Writer, decode, rollout
from latent.methods import NoCoT, Sim
from latent.thought import Chooser, Greedy, Replay, Sample, Share, drawn
from tests.helpers import ragged_prompt, small_reasoner
from tests.kernels import graphs
from tests.kernels.check import DEVICE
from tests.train.test_host_syncs import Syncs

PROMPTS, GROUP, END, VOCAB = 2, 2, 4, 13
ROWS = PROMPTS * GROUP


def small(family: str = "gpt2", config=None, heads: int = 2):
    """An untrained method of one layer, 16 wide for each head, with room for text."""
    model = ModelConfig(family=family, n_layer=1, n_embd=16 * heads, n_head=heads, n_positions=64)
    return small_reasoner(config or Sim(n_latent=2), model).method.to(DEVICE)


def prompt():
    made = ragged_prompt((3, 5), VOCAB)
    made.ids_BT, made.mask_BT = made.ids_BT.to(DEVICE), made.mask_BT.to(DEVICE)
    return made


@pytest.fixture
def fused(monkeypatch) -> Counter:
    """Kernels, whose graphs are counted, and a look whether all have ended every four tokens."""
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    monkeypatch.setattr("latent.generate._LOOK", {DEVICE: 4})
    return graphs.counted(monkeypatch)


def row_by_hand(method, ids: list[int], k: int):
    """In fp64: log-probs of what may follow a text that is written so far, all read anew and nothing cached."""
    body = method.backbone

    def following(text: list[int]):
        x_TD = body.embed(torch.tensor([ids]))
        for _ in range(k):
            x_TD = torch.cat(
                [x_TD, body.lm(inputs_embeds=x_TD, output_hidden_states=True).hidden_states[-1][:, -1:]], 1
            )
        x_TD = torch.cat([x_TD, body.embed(torch.tensor([text], dtype=torch.long))], 1)
        return body.lm(inputs_embeds=x_TD).logits[0, -1]

    return following


@pytest.mark.slow  # in Triton's interpreter
@pytest.mark.parametrize("family, noise", [("gpt2", 2**26), ("qwen3", 2 * 4 * ROWS * VOCAB)])
def test_a_rollout_is_that_of_its_noise(family, noise, fused, monkeypatch):
    """Seven tokens, by graphs of up to four of them, or of two where no more noise may be drawn ahead."""
    monkeypatch.setattr("latent.generate._NOISE", noise)
    method, given, temperature = small(family), prompt(), 0.7
    torch.manual_seed(3)
    rolled = rollout(method, given, GROUP, 7, END, temperature)
    after = torch.rand(1, device=DEVICE)
    (text,), tokens = rolled.decisions, rolled.tokens_BT.cpu()
    value_BT, logp_BT, entropy_BT, mask_BT = (
        x.cpu() for x in (text.value_BT, text.logp_BT, text.entropy_BT, text.mask_BT)
    )
    length = tokens.shape[1]
    torch.manual_seed(3)
    noise_TBV = torch.stack([torch.empty(ROWS, VOCAB, device=DEVICE).exponential_() for _ in range(length)])
    assert torch.equal(after, torch.rand(1, device=DEVICE))  # as many numbers were drawn as tokens
    noise_TBV, exact = noise_TBV.cpu(), small(family).double().cpu()
    exact.load_state_dict({name: p.double() for name, p in method.state_dict().items()})
    ended = []
    with torch.no_grad():
        for row in range(ROWS):
            ids = given.ids_BT[row // GROUP][given.mask_BT[row // GROUP]].tolist()
            following, live = row_by_hand(exact, ids, 2), True
            for t in range(length):
                assert bool(mask_BT[row, t]) == live
                if not live:
                    assert tokens[row, t] == END
                    continue
                logp_V = (following(tokens[row, :t].tolist()) / temperature).log_softmax(-1)
                assert int((logp_V.exp() / noise_TBV[t, row]).argmax()) == int(tokens[row, t]) == int(value_BT[row, t])
                assert abs(float(logp_V[tokens[row, t]] - logp_BT[row, t])) < 1e-5
                assert abs(float(-(logp_V.exp() * logp_V).sum() - entropy_BT[row, t])) < 1e-5
                live = int(tokens[row, t]) != END
            ended.append(not live)
    assert (any(ended) or DEVICE == "cuda") and text.time_T.tolist() == list(range(length))
    assert length == 7 and fused["replayed"] == 1 + (2 if noise == 2**26 else 3)  # latents; the last token without


@pytest.mark.skipif(DEVICE != "cuda", reason="there is no GPU to wait for")
def test_a_gpu_is_not_waited_for(monkeypatch):
    """Torch raises where the host would wait; the first text, whose graphs are captured, may."""
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    method, given = small(), prompt()
    with torch.no_grad():
        for mode in ("default", "error"):
            thought = method.think(given, Greedy())
            torch.cuda.set_sync_debug_mode(mode)
            try:
                decode(method, thought, Sample(0.7), 12, None)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE == "cuda", reason="counted on a CPU, where the same operations run")
@pytest.mark.slow
def test_nobody_waits_between_two_looks(fused, monkeypatch):
    """A greedy text of nine tokens: two graphs of four, the last token, and the host asks twice what it has to."""
    from kernels.decode_step.triton import Step

    run = Step.__call__

    def launched(*args):  # the interpreter copies to the host what a GPU does not
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            run(*args)

    monkeypatch.setattr(Step, "__call__", launched)
    method, given = small(), prompt()
    with torch.no_grad():
        thought = method.think(given, Greedy())
        before = fused["replayed"]
        with Syncs() as syncs:
            tokens = decode(method, thought, Greedy(), 9, VOCAB - 1)
        monkeypatch.setenv("LATENT_KERNELS", "torch")
        assert torch.equal(tokens, decode(method, method.think(given, Greedy()), Greedy(), 9, VOCAB - 1))
    assert tokens.shape[1] == 9 and fused["replayed"] - before == 2
    assert syncs.found == {"_local_scalar_dense": 2}


@pytest.mark.slow
def test_one_graph_serves_every_text_of_its_kind(fused):
    """Captured once for its length, temperature and end token, and again where the head lies elsewhere."""
    method, given = small(config=NoCoT(), heads=1), prompt()

    def write(temperature: float = 1.0, end: int | None = None):
        with torch.no_grad():
            decode(method, method.think(given, Greedy()), Sample(temperature), 2, end)
        return fused["captured"]

    assert [write(), write(), write(0.5), write(0.5), write(0.5, 3), write()] == [1, 1, 2, 2, 3, 3]
    head = method.backbone.lm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    assert write() == 4


@pytest.mark.slow
@pytest.mark.parametrize("most, positions", [(1, 64), (30, 8)])
def test_a_text_ends_with_the_budget_and_with_the_last_position(most, positions, fused, monkeypatch):
    method, given = small(config=NoCoT()), prompt()
    method.backbone.positions = positions  # of which the prompt takes five
    texts = []
    for which in ("triton", "torch"):
        monkeypatch.setenv("LATENT_KERNELS", which)
        with torch.no_grad():
            texts.append(decode(method, method.think(given, Greedy()), Greedy(), most, None))
    assert torch.equal(*texts) and texts[0].shape == (2, min(most, positions - 5 + 1))


def test_noise_drawn_ahead_is_what_a_draw_takes():
    """torch draws one value of each row as argmax p / q with q exponential: on a CPU bit for bit."""
    dist = Categorical(logits=torch.randn(5, 11))
    for seed in range(20):
        torch.manual_seed(seed)
        want = [dist.sample() for _ in range(3)]
        torch.manual_seed(seed)
        choose = Sample()
        noise = [choose.noise(5, 11, torch.device("cpu")) for _ in range(3)]
        assert all(torch.equal(choose.on_device(dist, q), w) for q, w in zip(noise, want)) and choose.drawn == 3


def test_a_share_draws_ahead_what_the_whole_batch_would():
    whole = torch.empty(6, 11).exponential_(generator=torch.Generator().manual_seed(3))
    for rows in ([0, 1, 2], [3, 4, 5], [4, 0]):
        share = Share(torch.tensor(rows), 6, torch.Generator().manual_seed(3))
        assert torch.equal(Sample(share=share).noise(len(rows), 11, torch.device("cpu")), whole[rows])


def test_the_choice_on_the_device_is_the_choosers_own():
    """Whoever says how its text is chosen there chooses so here; who repeats what was chosen says nothing."""
    from eval.interventions import StopAfter
    from latent.policies.tokens.policy import DrawnThoughts

    dist, live_B = Categorical(logits=torch.randn(5, 11)), torch.ones(5, dtype=torch.bool)
    for choose in (Greedy(), StopAfter(torch.zeros(5)), DrawnThoughts(Greedy(), torch.rand(1, 5, 2))):
        assert not choose.draws_text and torch.equal(choose.on_device(dist), choose("token", dist, live_B))
        assert torch.equal(choose.on_device(dist), dist.probs.argmax(-1)) and choose.decisions() == []
    choose = Sample()
    noise_BV = torch.rand(5, 11)
    assert choose.draws_text and torch.equal(choose.on_device(dist, noise_BV), (dist.probs / noise_BV).argmax(-1))
    assert Chooser().on_device is None and Replay([]).on_device is None


def test_a_chooser_with_a_pick_of_its_own_is_not_overruled_on_the_device():
    class Second(Sample):
        """The second likeliest token."""

        def pick(self, kind, dist):
            return dist.logits.topk(2).indices[:, 1]

    class Told(Second):
        on_device = staticmethod(lambda dist, noise: dist.logits.topk(2).indices[:, 1])

    class Hot(Sample):
        """Draws as its parent does."""

    assert Second().on_device is None and Told().on_device is not None and Hot().on_device is Sample.on_device


def test_a_writer_is_known_by_what_it_computes():
    body = small().backbone
    one, same = (Writer(body, drawn, 0.7, 4, True).key for _ in range(2))
    others = {Writer(body, *how).key for how in ((drawn, 0.8, 4, True), (drawn, 0.7, None, True), (len, 0.7, 4, True))}
    assert one == same and one not in others and len(others) == 3


@pytest.mark.parametrize("end", ["input", "output"])
def test_adapters_at_an_end_are_not_captured(end, monkeypatch):
    """They may be switched: such a model is asked for every token. So is one with any other module there."""
    monkeypatch.setenv("LATENT_KERNELS", "triton")
    body = small().backbone
    was = getattr(body.lm, f"get_{end}_embeddings")()
    adapted, (v, d) = type("Adapted", (type(was),), {}), was.weight.shape
    new = adapted(v, d) if end == "input" else adapted(d, v, bias=False)
    getattr(body.lm, f"set_{end}_embeddings")(new.to(DEVICE))
    with torch.no_grad():
        h_BD, context = body.read(torch.tensor([[1, 2, 3]], device=DEVICE))
        writer = Writer(body, Greedy.on_device, 1.0, None, False)
        assert body.write(h_BD, context, writer, 2, tuple, (torch.ones(1, dtype=torch.bool),)) is None

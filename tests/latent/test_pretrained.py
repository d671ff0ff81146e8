"""What big pretrained backbones need: adapters, gradient checkpointing, bfloat16, chat templates, odd tokenizers."""

import dataclasses
import io
import json
import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from eval.environments import GSM8K, build
from kernels.errors import UserError
from latent import load, lora, make, methods
from latent.backbone import Backbone
from latent.codec import Codec
from latent.config import ModelConfig
from latent.methods import Coconut, CoT, Recurrent, Sim
from tests.helpers import cups_batch, small_reasoner
from train import run as runs
from train.config import SFT, Judge, Run

SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64}


def grads(method, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    loss, _ = method.loss(batch)
    method.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize(
    "method", [CoT(), Sim(n_latent=4, stride=4, step_tokens=16), Coconut(n_latent=4, first_stage=3)]
)
def test_gradient_checkpointing_changes_no_gradient(method, family):
    reasoner = small_reasoner(method, ModelConfig(family=family, **SMALL), dtype=torch.float64)
    batch = cups_batch(reasoner.codec)
    loss, plain = grads(reasoner.method, batch)
    reasoner.method.backbone.recompute = True
    again, recomputed = grads(reasoner.method, batch)
    assert loss == again and plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["ours", "theirs"])
def test_gradient_checkpointing_of_a_family_we_do_not_know_is_an_error(how):
    config = GPTNeoXConfig(vocab_size=13, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    reasoner = small_reasoner(CoT())
    body = Backbone(GPTNeoXForCausalLM(config).train())
    if how == "ours":
        body.recompute = True
    else:
        body.lm.gradient_checkpointing_enable()
    method = methods.build(Sim(n_latent=2, stride=4), body)
    with pytest.raises(ValueError, match="gradient checkpointing of GPTNeoXForCausalLM loses the gradient"):
        method.loss(cups_batch(reasoner.codec))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_adapters_start_as_nothing_train_alone_and_merge_exactly(family):
    reasoner = small_reasoner(
        Sim(n_latent=3, stride=4, step_tokens=16), ModelConfig(family=family, **SMALL), dtype=torch.float64
    )
    method, lm = reasoner.method, reasoner.method.backbone.lm
    batch = cups_batch(reasoner.codec)
    ids = torch.randint(13, (2, 9))
    names, before, (loss, _) = set(method.state_dict()), lm(ids).logits, grads(method, batch)
    lora.add(lm, rank=4, alpha=8.0)
    assert torch.equal(lm(ids).logits, before)
    adapted, found = grads(method, batch)
    rounding = 1e-12 if family == "gpt2" else 1e-7  # llama rounds its norms to fp32
    torch.testing.assert_close(adapted, loss, rtol=0, atol=rounding)
    inside = {n for n in found if n.startswith("backbone.")}
    assert inside and all("lora_" in n for n in inside) and {n for n in found if n.startswith("decoder.")}
    layers = 2 * {"gpt2": 4, "llama": 7, "qwen3": 7}[family]
    assert len(inside) == 2 * layers
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.normal_()
    want, (trained, _) = lm(ids).logits, grads(method, batch)
    assert not torch.allclose(want, before)
    lora.merge(lm)
    assert set(method.state_dict()) == names
    torch.testing.assert_close(lm(ids).logits, want, rtol=0, atol=1e-9)
    torch.testing.assert_close(grads(method, batch)[0], trained, rtol=0, atol=max(rounding, 1e-9))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_loop_along_the_depth_is_recomputed_too(family):
    reasoner = small_reasoner(Recurrent(), ModelConfig(family=family, **SMALL), dtype=torch.float64)
    batch = cups_batch(reasoner.codec)
    _, plain = grads(reasoner.method, batch)
    reasoner.method.backbone.recompute = True
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        torch.manual_seed(0)
        reasoner.method.loss(batch)
    few = sum(kept)
    _, recomputed = grads(reasoner.method, batch)
    reasoner.method.backbone.recompute, kept = False, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        torch.manual_seed(0)
        reasoner.method.loss(batch)
    assert few < sum(kept) / 2
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [CoT(), Sim(n_latent=4, stride=4, step_tokens=16), Recurrent()])
def test_bfloat16_stays_near_fp32_and_leaves_the_weights_in_fp32(method):
    reasoner = small_reasoner(method)
    batch = cups_batch(reasoner.codec, 16)
    loss, exact = grads(reasoner.method, batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        half, _ = reasoner.method.loss(batch)
    reasoner.method.zero_grad()
    half.backward()
    assert half.dtype == torch.float32 and abs(float(half.detach() / loss) - 1) < 0.01
    flat = lambda gs: torch.cat([g.flatten() for g in gs])  # noqa: E731
    got = flat([p.grad for n, p in reasoner.method.named_parameters() if n in exact])
    assert got.dtype == torch.float32
    assert torch.cosine_similarity(got, flat(exact.values()), dim=0) > 0.99


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A tiny causal LM with a byte-level tokenizer that has a chat template and no pad token, and a data file."""
    folder = tmp_path_factory.mktemp("pretrained")
    rows = [
        {"question": f"What is {i} and {i}?", "steps": [f"<<{i}+{i}={2 * i}>>"], "answer": str(2 * i)}
        for i in range(40)
    ]
    (folder / "data.json").write_text(json.dumps(rows))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["</s>"], initial_alphabet=alphabet)
    trainer.show_progress = False
    raw.train_from_iterator([r["question"] for r in rows], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    body = make.from_scratch(ModelConfig(**{**SMALL, "n_positions": 256}), len(tokenizer), 0, 0)
    body.lm.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def settings(pretrained, **model) -> Run:
    data = str(pretrained / "data.json")
    return Run(
        env=GSM8K(train=data, max_answer=6),
        model=ModelConfig(pretrained=str(pretrained / "model"), **model),
        method=Coconut(n_latent=2, first_stage=1),
        train=SFT(steps=3, batch=4, warmup=1, log_every=1, lr=1e-2),
        judge=Judge(items=4, batch=4),
    )


def test_a_pretrained_backbone_with_all_of_it(pretrained, tmp_path):
    run = settings(pretrained, lora_rank=2, bf16=True, recompute=True, chat_template=True)
    result = runs.execute(run, tmp_path, device="cpu")
    assert result["main"]["n"] == 4
    reasoner = load(tmp_path / run.id)
    text = reasoner.codec.tokenizer.decode(reasoner.codec.question("Hello?"))
    assert text == "[user] Hello?[bot]<think>" and reasoner.codec.chat
    assert reasoner.codec.pad != reasoner.codec.end and reasoner.method.stage == 1
    start, _ = make.from_pretrained(str(pretrained / "model"))
    before, after = start.lm.state_dict(), reasoner.method.backbone.lm.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n][: len(before[n])])}
    assert changed and all(n.endswith("weight") and (".attn." in n or ".mlp." in n) for n in changed)


def test_what_does_not_go_together(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"model\.lora_rank needs a pretrained backbone"):
        ModelConfig(lora_rank=4)
    with pytest.raises(ValueError, match="first_stage must be one of the stages, got 9"):
        Coconut(n_latent=2, first_stage=9)
    _, tokenizer = make.from_pretrained(str(pretrained / "model"))
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        Codec(tokenizer, chat=True)
    small = make.from_scratch(ModelConfig(**SMALL), 50, 0, 0)
    small.lm.save_pretrained(tmp_path / "foreign")
    tokenizer.save_pretrained(tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"the tokenizer of .* ids, the model 50: not of one make"):
        make.from_pretrained(str(tmp_path / "foreign"))
    assert build(GSM8K(train=str(pretrained / "data.json"))).splits["train"]


def changed(file: str, **fields):
    """Other values in a JSON file of a folder."""

    def spoil(folder):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))

    return spoil


def without(*names: str):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


WEIGHTS = "model.safetensors"
SPOILT = {
    "cut weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]), "cannot load a causal LM .*Safetensor"
    ),
    "no bytes": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot load a causal LM from .*Safetensor"),
    "a pointer of Git LFS": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "cannot load .*Safetensor"
    ),
    "weights of another shape": (changed("config.json", n_embd=64), "cannot load a causal LM from"),
    "a word for a number": (changed("config.json", n_layer="one"), "cannot load a causal LM from"),
    "an unknown activation": (changed("config.json", activation_function="foo"), "KeyError: 'foo'"),
    "an unknown family": (changed("config.json", model_type="soup"), "cannot load a causal LM from"),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load a causal LM from"),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"), "has no tokenizer|cannot load"
    ),
    "no config": (without("config.json"), "has no config.json: it is no folder of a causal LM"),
    "a run of ours": (
        lambda f: (f / "config.json").write_text('{"class": "Run"}'), "a run or a saved reasoner of ours, .*: --init"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_a_damaged_folder_is_one_line(kind, pretrained, tmp_path, capfd):
    spoil, said = SPOILT[kind]
    shutil.copytree(pretrained / "model", tmp_path / "model")
    spoil(tmp_path / "model")
    capfd.readouterr()
    with pytest.raises(UserError, match=said) as e:
        make.from_pretrained(str(tmp_path / "model"))
    assert "\n" not in str(e.value) and "LOAD REPORT" not in "".join(capfd.readouterr())


def test_no_code_of_a_checkpoint_is_run_or_asked_about(pretrained, tmp_path, monkeypatch):
    """A tokenizer, a model and a reasoner that bring code of their own: refused in one line, with nothing read from
    stdin, where our own classes cannot open them; else opened by those."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast, GPT2Config\n"
    code += "class Tok(PreTrainedTokenizerFast): pass\nclass Conf(GPT2Config): model_type = 'evil'\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))

    def spoil(folder, name, **change):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        (folder / "evil.py").write_text(code)

    tokens = {"auto_map": {"AutoTokenizer": [None, "evil.Tok"]}, "tokenizer_class": "Tok"}
    shutil.copytree(pretrained / "model", tmp_path / "tokenizer")
    spoil(tmp_path / "tokenizer", "tokenizer_config.json", **tokens)
    shutil.copytree(pretrained / "model", tmp_path / "model")
    spoil(tmp_path / "model", "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Conf"})
    for name in ("tokenizer", "model"):
        try:
            make.from_pretrained(str(tmp_path / name))
        except ValueError as e:
            assert "\n" not in str(e) and name in str(e)
    run = dataclasses.replace(settings(pretrained), train=SFT(steps=0))
    runs.execute(run, tmp_path, device="cpu")
    spoil(tmp_path / run.id / "model", "tokenizer_config.json", **tokens)
    inner = {"auto_map": {"AutoModelForCausalLM": "evil.Conf"}}
    about = json.loads((tmp_path / run.id / "model" / "config.json").read_text())
    spoil(tmp_path / run.id / "model", "config.json", backbone=about["backbone"] | inner)
    try:
        load(tmp_path / run.id)
    except ValueError as e:
        assert "\n" not in str(e)
    assert not ran.exists() and sys.stdin.read() == "y\n" * 9


def test_dropout_of_adapters_is_of_training_alone():
    reasoner = small_reasoner(Sim(n_latent=2, stride=4, step_tokens=16), ModelConfig(**SMALL))
    method, batch = reasoner.method, cups_batch(reasoner.codec)
    lora.add(method.backbone.lm, rank=4, alpha=8.0, dropout=0.5)
    for name, p in method.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    for training, differ in ((True, True), (False, False)):
        method.train(training)
        one, two = (float(method.loss(batch)[0].detach()) for _ in range(2))
        assert (abs(one - two) > 1e-4) is differ
    with pytest.raises(ValueError, match=r"model.lora_dropout is of adapters: say --model.lora-rank"):
        ModelConfig(pretrained="gpt2", lora_dropout=0.1)

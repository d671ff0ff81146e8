"""The page of thoughts: its numbers against the model, and the page itself in a browser."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch

from eval import view
from eval.environments import Cups, ProsQA, build
from latent import hub
from latent.config import LearnedStop, ModelConfig
from latent.generate import decode
from latent.methods import CoT, Pause, Recurrent, Sim
from latent.plain import plain
from latent.thought import Greedy
from tests.helpers import SMALL, small_reasoner

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None)


def kept(home, name, method, env=None, model=SMALL):
    """A finished run's folder, and its reasoner."""
    env = env or Cups()
    reasoner = small_reasoner(method, model, build(env))
    if getattr(reasoner.method, "stop", None) is not None:
        torch.nn.init.normal_(reasoner.method.stop.linear.weight, std=0.3)
    hub.save(reasoner, home / name / "model")
    config = {"class": "Run", "env": plain(env), "model": plain(model), "method": plain(method), "seed": 0}
    (home / name / "config.json").write_text(json.dumps(config))
    (home / name / "result.json").write_text("{}")
    return reasoner


def page(home, *args) -> tuple[dict, str]:
    """What a page was given to show, and the page."""
    assert view.main([str(home), "--problems", "9", "--probe-items", "60", *args]) == 0
    text = (home / "view.html").read_text()
    return json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE)[1]), text


def family_attentions(method, question, thought, codec) -> list[torch.Tensor]:
    """The family's own attention weights (S, S) of each layer, mean over heads, of prompt and thoughts recomputed."""
    ids = codec.prompt([question]).ids_BT
    n, used = ids.shape[1], int(thought.used_U[0])
    x = torch.cat([method.backbone.embed(ids), method.feedback(thought.states_UKD[:, :used].flatten(0, 1))[None]], 1)
    pos = torch.tensor([[*range(n), *(n + method.stride * (i + 1) - 1 for i in range(used))]])
    method.backbone.lm.set_attn_implementation("eager")
    body, mask = method.backbone.decoder[0], torch.ones_like(pos)
    out = body(inputs_embeds=x, position_ids=pos, attention_mask=mask, output_attentions=True)
    return [a[0].mean(0) for a in out.attentions]


def test_a_page_shows_what_the_model_does(tmp_path):
    reasoner = kept(tmp_path, "aaa", Sim(n_latent=3, stride=4, halt=LearnedStop(bias=-1.0)))
    codec = reasoner.codec
    chains = kept(tmp_path, "bbb", CoT())
    data, text = page(tmp_path / "aaa")
    assert not re.search(r"https?://|src=|@import", text)
    assert len(data["problems"]) == 9 and len({p["level"] for p in data["problems"]}) > 3
    vocab = {i: w for w, i in reasoner.codec.tokenizer.get_vocab().items()}
    for p in data["problems"][:3]:
        (text,) = reasoner.answer([p["question"]])
        assert p["text"] == text and p["chain"]["text"] == chains.answer([p["question"]])[0]
        with torch.no_grad():
            thought = reasoner.method.think(reasoner.codec.prompt([p["question"]]), Greedy())
            assert p["used"] == int(thought.used_U[0]) == len(p["thoughts"]) - 1
            weights = family_attentions(reasoner.method, p["question"], thought, codec)
            for i, at in enumerate(p["thoughts"]):
                h_D = thought.states_UKD[0, i]
                p_V = reasoner.method.backbone.head(h_D).softmax(-1)
                best = int(p_V.argmax())
                assert at["top"][0][0] == vocab[best] and at["top"][0][1] == pytest.approx(float(p_V[best]), rel=1e-4)
                weight, bias = reasoner.method.stop.linear.weight[0], reasoner.method.stop.linear.bias
                assert at["halt"] == pytest.approx(float(torch.sigmoid(weight @ h_D + bias)), rel=1e-4)
                assert [len(w) for w in at["attention"]] == [9 + i] * 2
                for got, whole_SS in zip(at["attention"], weights):
                    assert got == pytest.approx(whole_SS[8 + i, : 9 + i].tolist(), abs=1e-5)
                assert at["stopped"]["text"] == reasoner.answer([p["question"]], steps=i)[0]
                if i:
                    before = thought.states_UKD[0, i - 1]
                    assert at["moved"] == pytest.approx(float((h_D - before).norm() / h_D.norm()), rel=1e-4)
                    steps = build(Cups()).parse_question(p["question"]).steps
                    assert at["oracle"] == steps[reasoner.method.target_step(i, 8) - 1]
                    assert set(at["probe"].split()) <= {"1", "2", "3", "4"} and len(at["probe"].split()) == 4


def test_an_ablated_latent_has_the_mean_as_input(tmp_path):
    reasoner = kept(tmp_path, "aaa", Sim(n_latent=3, stride=4))
    data, _ = page(tmp_path / "aaa")
    known = build(Cups()).train_batch("probe", 0, 60)
    inputs = []
    with torch.no_grad():
        edit = lambda i, x: inputs.append(x) or x  # noqa: E731
        reasoner.method.think(reasoner.codec.prompt([p.question for p in known]), Greedy(), edit=edit)
        for p in data["problems"][:3]:
            for i in (1, 2, 3):
                mean = lambda j, x: inputs[j].mean(0, keepdim=True) if j == i - 1 else x  # noqa: B023, E731
                thought = reasoner.method.think(reasoner.codec.prompt([p["question"]]), Greedy(), edit=mean)
                said = decode(reasoner.method, thought, Greedy(), reasoner.max_tokens, None)
                assert p["thoughts"][i]["ablated"]["text"] == reasoner.codec.texts(said)[0]


@pytest.mark.parametrize(
    "method, env, model",
    [
        (Recurrent(n_recurrence=3), None, SMALL),
        (Pause(Sim(n_latent=2, stride=4)), None, SMALL),
        (Sim(n_latent=2), ProsQA(), ModelConfig(n_layer=2, n_embd=32, n_head=2, n_positions=512)),
    ],
)
def test_every_loop_has_a_page(method, env, model, tmp_path):
    kept(tmp_path, "aaa", method, env, model)
    data, _ = page(tmp_path / "aaa")
    for p in data["problems"]:
        assert len(p["thoughts"]) == p["used"] + 1 and p["chain"] is None
        assert data["places"] == (["answer 2", "answer 3", "answer 4"] if type(method) is Recurrent else [])
        for i, at in enumerate(p["thoughts"]):
            assert at["attention"] and all(sum(w) == pytest.approx(1, abs=1e-5) for w in at["attention"])
            assert (i == 0) or (at["oracle"] and at["probe"])


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_page_works_in_a_browser(tmp_path):
    kept(tmp_path, "aaa", Sim(n_latent=3, stride=4))
    data, _ = page(tmp_path / "aaa")

    def dom(at: str) -> str:
        quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        args = [BROWSER, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
        url = f"file://{tmp_path}/aaa/view.html{at}"
        done = subprocess.run([*args, url], capture_output=True, text=True, check=True, timeout=120)
        return done.stdout[done.stdout.index("<nav") : done.stdout.index("<script>")]

    first = dom("")
    assert "Sim on Cups, run aaa" in first and "Before the first latent" in first and "no CoT run beside" in first
    assert first.count("<button") == 9 + 4
    p = data["problems"][4]
    at = p["thoughts"][2]
    shown = html.unescape(re.sub(r"<[^>]*>", "", dom("#5.2")))
    for part in (p["question"], "Latent 2", at["oracle"], at["probe"], at["stopped"]["text"], at["ablated"]["text"]):
        assert part in shown, part
    for token, share in at["top"]:
        assert f"{token}{share:.3f}" in shown
    assert "a probe reads" in shown and f"{at['moved']:.2f} of its length" in shown and "thought 2" in shown
    assert "Latent 3" in dom("#99.99")  # beyond the last: the last


@pytest.mark.parametrize(
    "method, args, message",
    [
        (CoT(), [], "thinks in no latents (CoT): nothing to look into"),
        (Sim(n_latent=1), ["--top", "0"], "--top must be at least 1, got 0"),
        (Sim(n_latent=1), ["--cot", "nowhere"], "nowhere is not a folder"),
        (None, [], "is not a folder"),
    ],
)
def test_what_cannot_be_shown_is_one_line(method, args, message, tmp_path, capsys):
    if method:
        kept(tmp_path, "aaa", method)
    assert view.main([str(tmp_path / "aaa"), "--probe-items", "10", *args]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err


HOSTILE = "<!-- <script> </script> --> ]]> &amp; \u2028 \u2029 \\ /*DATA*/ null"


def test_no_text_of_a_problem_breaks_the_page():
    """HTML's parser leaves a script only at its end tag, and reads on in another way after `<!--` and `<script`."""
    text = view.page({"problems": [{"question": HOSTILE}]})
    script = text.partition("<script>")[2]
    line = next(line for line in script.split("\n") if line.startswith("const data = "))
    assert not set("<>&\u2028\u2029") & set(line)
    assert json.loads(line.removeprefix("const data = ").removesuffix(";"))["problems"][0]["question"] == HOSTILE
    bare = view.page({})
    for mark in ("<script", "</script", "<!--"):
        assert text.count(mark) == bare.count(mark)


def test_a_page_that_cannot_be_written_is_refused_before_a_look(tmp_path, capsys, monkeypatch):
    kept(tmp_path, "aaa", Sim(n_latent=1, stride=4))
    monkeypatch.setattr(view, "look", lambda options: pytest.fail("looked first"))
    for out in (tmp_path / "aaa", tmp_path / "aaa" / "config.json" / "x.html", "/proc/x.html"):
        assert view.main([str(tmp_path / "aaa"), "--out", str(out)]) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith(f"error: --out {out}") and "\n" not in err

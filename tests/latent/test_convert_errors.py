"""What cannot be converted is one line that names the file, and nothing is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latent.convert.__main__ import main
from tests.latent.published import D, base_of, codi_state, grown, projection, saved, state_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A backbone's folder, a state dict of CODI's, one of Coconut's, and a plain Hugging Face folder."""
    root = tmp_path_factory.mktemp("parts")
    lm, _ = base_of("gpt2", root / "base")
    lm = grown(lm, 3)
    coconut = state_of(lm, "base_causallm.")
    return root, codi_state(lm, projection()), coconut


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


def altered(state, folder, **changes):
    """A state dict with other tensors under some names; None takes one away."""
    saved({name: x for name, x in (state | changes).items() if x is not None}, folder)


def without_a_shard(folder):
    where = {"transformer.wte.weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    saved({"transformer.wte.weight": torch.zeros(4, D)}, folder, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def cut_short(state, folder, name):
    file = saved(state, folder, name) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


MLP = "codi.base_model.model.transformer.h.0.mlp.c_fc"
SPOILT = {
    "a missing shard": (
        lambda codi, coco, f: without_a_shard(f),
        "index.json names files that are missing: model-00002",
    ),
    "a missing shard in a folder": (
        lambda codi, coco, f: (saved(codi, f) / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "parts/1.safetensors"}}'
        ),
        "index.json names files that are missing: parts/1.safetensors",
    ),
    "a shard list that is none": (
        lambda codi, coco, f: (saved(codi, f) / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
        "model.safetensors.index.json names no files",
    ),
    "cut safetensors": (
        lambda codi, coco, f: cut_short(codi, f, "model.safetensors"),
        "model.safetensors is damaged",
    ),
    "cut bin": (lambda codi, coco, f: cut_short(codi, f, "pytorch_model.bin"), "pytorch_model.bin is damaged or cut"),
    "an empty bin": (
        lambda codi, coco, f: (f.mkdir(), (f / "pytorch_model.bin").touch()),
        "pytorch_model.bin is damaged or cut",
    ),
    "code in a pickle": (
        lambda codi, coco, f: (f.mkdir(), torch.save({"codi.x": Evil()}, f / "pytorch_model.bin")),
        f"is refused: it holds more than tensors ({os.system.__module__}.system), and would run code",
    ),
    "no tensors": (
        lambda codi, coco, f: (f.mkdir(), torch.save({"epoch": 3}, f / "pytorch_model.bin")),
        "pytorch_model.bin is no state dict: epoch is no tensor",
    ),
    "a tensor alone": (
        lambda codi, coco, f: (f.mkdir(), torch.save(torch.zeros(2), f / "pytorch_model.bin")),
        "pytorch_model.bin is no state dict: it is a Tensor",
    ),
    "a few bytes": (
        lambda codi, coco, f: (f.mkdir(), (f / "pytorch_model.bin").write_bytes(b"\x80\x02ab")),
        "pytorch_model.bin is damaged or cut",
    ),
    "no weights": (lambda codi, coco, f: f.mkdir(), "has no file with weights"),
    "several files": (
        lambda codi, coco, f: (saved(coco, f, "checkpoint_1"), saved(coco, f, "checkpoint_2")),
        "has several files with weights (checkpoint_1, checkpoint_2 ...): give one of them",
    ),
    "an empty config": (
        lambda codi, coco, f: (saved(state_of_plain(codi), f) / "config.json").write_text(" "),
        "config.json is empty",
    ),
    "a config that says nothing": (
        lambda codi, coco, f: (saved(state_of_plain(codi), f) / "config.json").write_text("{}"),
        "config.json says nothing",
    ),
    "an unknown layout": (lambda codi, coco, f: saved(state_of_plain(codi), f), "the layout is not known (weights: "),
    "an unknown key": (
        lambda codi, coco, f: saved(codi | {"gate.weight": torch.zeros(1)}, f),
        "has weights that CODI has not: gate.weight",
    ),
    "an unknown key inside": (
        lambda codi, coco, f: saved(coco | {"base_causallm.transformer.gate": torch.zeros(1)}, f),
        "has weights without a place in a GPT2LMHeadModel: transformer.gate",
    ),
    "a missing key": (
        lambda codi, coco, f: altered(coco, f, **{"base_causallm.transformer.ln_f.bias": None}),
        "lacks weights: transformer.ln_f.bias",
    ),
    "half of an adapter": (
        lambda codi, coco, f: altered(codi, f, **{f"{MLP}.lora_B.default.weight": None}),
        "an adapter without its counterpart or its weight: transformer.h.0.mlp.c_fc.lora_A",
    ),
    "an adapter of another kind": (
        lambda codi, coco, f: altered(codi, f, **{f"{MLP}.lora_magnitude_vector.default.weight": torch.zeros(1)}),
        "adapters of another kind: transformer.h.0.mlp.c_fc.lora_magnitude_vector",
    ),
    "another shape": (
        lambda codi, coco, f: altered(coco, f, **{"base_causallm.transformer.ln_f.bias": torch.zeros(D + 1)}),
        f"transformer.ln_f.bias has shape ({D + 1},), the config asks for ({D},)",
    ),
    "another projection": (
        lambda codi, coco, f: altered(
            codi, f, **{"prj.1.weight": torch.zeros(D + 2, D), "prj.1.bias": torch.zeros(D + 2)}
        ),
        f"has shape ({D + 2}, {D}), the config asks for ({D}, {D})",
    ),
    "no special tokens": (
        lambda codi, coco, f: saved({n: x[:-3] if "wte" in n or "lm_head" in n else x for n, x in coco.items()}, f),
        "rows of embeddings, where the tokenizer of",
    ),
    "weights that are not finite": (
        lambda codi, coco, f: altered(coco, f, **{"base_causallm.transformer.ln_f.bias": torch.full((D,), torch.nan)}),
        "has weights that are not finite: transformer.ln_f.bias",
    ),
}


def state_of_plain(state):
    """The same weights under names that no layout has."""
    return {"model." + name: x for name, x in state.items()}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_damaged_or_foreign_checkpoint_is_one_line(kind, parts, tmp_path, capfd):
    root, codi, coco = parts
    spoil, message = SPOILT[kind]
    spoil(codi, coco, tmp_path / "theirs")
    base = [] if "config" in kind else ["--base", str(root / "base")]
    assert main([str(tmp_path / "theirs"), *base, "--out", str(tmp_path / "ours")]) == 2
    out, err = capfd.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1 and "executed" not in out
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["COCO", "--layout", "codi", "--base", "BASE"], "is not laid out as codi: CODI's state dict"),
        (["BASE", "--layout", "coconut"], "is not laid out as coconut"),
        (["COCO", "--layout", "pause"], "--layout must be one of coconut, codi, latenttts, soft, gguf, got 'pause'"),
        (["COCO"], "has no config.json: name the backbone that was trained by --base (such as gpt2)"),
        (["COCO", "--base", "COCO"], "no config and tokenizer of a backbone can be read from"),
        (["COCO", "--base", "BASE", "--n-latent", "-1"], "--n-latent must be in 0..1000000, got -1"),
        (["COCO", "--base", "BASE", "--lora-alpha", "0"], "--lora-alpha must be > 0, got 0.0"),
        (["COCO", "--base", "BASE", "--lora-alpha", "16"], "--lora-alpha is not of layout coconut: it takes --base, "),
        (["some/where/else"], "is not a folder, a file, or a name on the hub"),
        (["no-such/checkpoint"], "no-such/checkpoint is no folder or file here, and was not downloaded"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(args, message, parts, tmp_path, capsys, monkeypatch):
    root, _, coco = parts
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    saved(coco, tmp_path / "theirs")
    named = {"COCO": str(tmp_path / "theirs"), "BASE": str(root / "base")}
    assert main([*(named.get(a, a) for a in args), "--out", str(tmp_path / "ours")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_a_folder_with_something_in_it_is_left_alone(parts, tmp_path, capsys):
    root, _, coco = parts
    theirs, ours = saved(coco, tmp_path / "theirs"), tmp_path / "ours"
    ours.mkdir()
    (ours / "notes.txt").write_text("mine")
    command = [str(theirs), "--base", str(root / "base"), "--out", str(ours)]
    assert main(command) == 2 and "is not an empty folder" in capsys.readouterr().err
    assert [p.name for p in ours.iterdir()] == ["notes.txt"]
    (ours / "notes.txt").unlink()
    assert main(command) == 0 and (ours / "model.safetensors").exists()
    assert "published: Coconut, GPT-2: GSM8K 34.1" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = (
        "import sys, latent.convert.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'safetensors') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "SIM-CoT" in out and "--lora-alpha" in out and out.rstrip().endswith("[]")


def test_what_is_ours_needs_no_conversion(tmp_path, capsys):
    for name, about in (("run", {"class": "Run"}), ("model", {"model_type": "latent"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(about))
        assert main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path / name} is a checkpoint of ours: latent.load, lm-eval")
        assert err.count("\n") == 1 and not (tmp_path / "out").exists()

"""What goes wrong before a command has begun: ^C amid its imports, a package of the user's under one of our names."""

import subprocess

import pytest

from tests.helpers import ROOT, python

INTERRUPTED = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    1 / 0\n"


def command(module, *args, cwd) -> subprocess.CompletedProcess:
    return python("-m", module, *args, cwd=cwd, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize("module", ["latent.convert", "train.latent", "eval.runs", "eval.chat", "paper.run"])
def test_an_interrupt_amid_imports_is_no_traceback(module, tmp_path):
    """tyro and torch that are interrupted while they are imported, and make another error of it."""
    (tmp_path / "tyro.py").write_text(INTERRUPTED)
    done = command(module, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_an_interrupt_amid_the_import_of_torch_is_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    done = command("eval.chat", ROOT, cwd=tmp_path)
    assert done.returncode == 130 and "Traceback" not in done.stderr and "ZeroDivision" not in done.stderr


@pytest.mark.parametrize(
    "module, theirs, said",
    [
        ("paper.run", "train.py", True),
        ("train.latent", "eval.py", True),
        ("paper.run", "train/__init__.py", True),
        ("eval.runs", "train.py", False),  # which it does not need
        ("latent.convert", "eval.py", False),
        ("train.latent", "train/notes.txt", False),  # a folder of data
    ],
)
def test_a_module_of_the_users_under_our_name_is_named(module, theirs, said, tmp_path):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("theirs = True\n")
    args = ["--out", "."] if module == "eval.runs" else ["--help"]
    done = command(module, *args, cwd=tmp_path)
    if said:
        name = theirs.removesuffix(".py").split("/")[0]
        assert done.returncode == 2 and f"{theirs} hides the package {name!r}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.returncode == 0, done.stderr


def test_every_preset_is_completed():
    from train.presets import PRESETS

    done = command("train.latent", "--tyro-print-completion", "bash", cwd=ROOT)
    script = f"{done.stdout}\nf=$(complete -p | sed -n 's/.*-F \\([^ ]*\\).*/\\1/p' | head -1)\n"
    script += 'COMP_WORDS=(latent-train ""); COMP_CWORD=1; $f; echo "${COMPREPLY[@]}"\n'
    script += 'COMP_WORDS=(latent-train sim --train.ke); COMP_CWORD=2; $f; echo "${COMPREPLY[@]}"\n'
    said = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(PRESETS) <= set(said[0].split()) and said[1] == "--train.keep"

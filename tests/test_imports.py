"""The house: imports run one way, and the command line needs no torch to say what it can do."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ["kernels", "latent", "eval", "train", "paper"]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_imports_run_downwards():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for i, floor in enumerate(FLOORS)
        for path in (ROOT / floor).rglob("*.py")
        for name in imported(path) & set(FLOORS[i + 1 :])
    ]
    assert not wrong


def test_only_the_backbone_runs_transformers_models():
    """Two files make and run them; others are what reads and writes theirs, the Hugging Face model, and bare shapes."""
    model = {f"latent/hf{part}.py" for part in ("", "_cache", "_config", "_callers", "_generation")}
    face = model | {"latent/hub.py", "eval/lm.py", "latent/convert/pretrained.py", "latent/convert/gguf.py"}
    runs = {"latent/make.py", "latent/families.py"}
    allowed = {"latent/codec.py", "kernels/bench_cases.py", "train/estimate.py"} | runs | face
    users = {
        str(p.relative_to(ROOT)) for f in FLOORS for p in (ROOT / f).rglob("*.py") if "transformers" in imported(p)
    }
    assert users <= allowed


def test_no_file_shadows_the_standard_library():
    names = {p.stem for f in FLOORS for p in (ROOT / f).rglob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)


def test_help_and_import_stay_light():
    code = (
        "import sys, latent, train.latent as m\n"
        "try: m.main(['cups', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'matplotlib', 'lm_eval') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--arms.ARM.method.halt {fixed,learned,converged}" in out
    assert out.rstrip().endswith("[]")


def test_the_name_kernels_is_shared_with_the_hugging_face_package(tmp_path):
    """Theirs, a regular package, stands before ours on the path: both are found after `import latent`."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("__version__ = '0.17.2'\n")
    (tmp_path / "kernels" / "layer.py").write_text("theirs = True\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import latent, kernels, kernels.layer, kernels.dispatch\n"
        "print(kernels.__version__, kernels.layer.theirs, kernels.dispatch.IMPLS)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out == "0.17.2 True ('auto', 'torch', 'triton')\n"


def test_no_module_of_ours_takes_a_name_of_theirs():
    theirs = {"benchmark", "layer", "layers", "load", "compat", "backends", "cli", "install", "deps", "utils"}
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not theirs & {p.stem for p in (ROOT / "kernels").iterdir()}

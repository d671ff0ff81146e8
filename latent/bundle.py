"""The file that opens a checkpoint without this package: it holds the sources of `latent` and `kernels`.

`modeling_latent.py` has every module as readable comment lines, and a loader that imports them under a package name of
their own. `trust_remote_code=True` therefore runs the same loop as this package, and checkpoints of different versions
can be open in one process.
"""

import re
import sys
from hashlib import blake2b
from pathlib import Path

from latent.hf_config import CODE

_LEFT_OUT = (
    "latent/__init__.py",
    "latent/cli.py",
    "latent/convert/",
    "latent/lm_eval_door.py",
    "latent/startup.py",
    "kernels/bench.py",
    "kernels/bench_cases.py",
    "kernels/budget.py",
    "kernels/report.py",
)
_IMPORT = re.compile(r"^(\s*)from (latent|kernels)(?=[. ])", re.MULTILINE)

_LOADER = '''"""A latent reasoner, whole: {files} modules below as comments, imported by the loader above them.

Written by latent-reasoning, Apache-2.0. Every "#| " line is a line of a module, every "#@ " line names the next one.
"""

import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOT = "{root}"


class _Sources(MetaPathFinder, InspectLoader):
    def __init__(self):
        self.modules, lines = {{}}, []
        for line in Path(__file__).read_text(encoding="utf-8").splitlines():
            if line.startswith("#@ "):
                lines = self.modules.setdefault(line[3:], [])
            elif line.startswith("#|"):
                lines.append(line[3:])

    def _file(self, name):
        if not name.startswith(ROOT + "."):
            return None
        path = name[len(ROOT) + 1 :].replace(".", "/")
        if path + ".py" in self.modules:
            return path + ".py"
        inside = any(file.startswith(path + "/") for file in self.modules)
        return path + "/__init__.py" if inside else None

    def find_spec(self, name, path=None, target=None):
        file = self._file(name)
        if name != ROOT and file is None:
            return None
        origin = __file__ if name == ROOT else f"{{__file__}}:{{file}}"
        spec = ModuleSpec(name, self, origin=origin, is_package=self.is_package(name))
        spec.has_location = name != ROOT
        return spec

    def is_package(self, name):
        return name == ROOT or self._file(name).endswith("/__init__.py")

    def get_source(self, name):
        return "".join(line + "\\n" for line in self.modules.get(self._file(name) or "", ()))

    def exec_module(self, module):
        source, origin = self.get_source(module.__name__), module.__spec__.origin
        exec(compile(source, origin, "exec", dont_inherit=True), module.__dict__)


if ROOT not in sys.modules:
    sys.meta_path.insert(0, _Sources())
_hf = __import__(ROOT + ".latent.hf", fromlist=["hf"])
sys.modules[ROOT].FILE = __file__
LatentConfig, LatentForCausalLM = _hf.LatentConfig, _hf.LatentForCausalLM

'''


def text() -> str:
    """The text of the file. Equal sources give equal text."""
    ours = getattr(sys.modules.get(__name__.removesuffix(".latent.bundle")), "FILE", None)
    if ours is not None:  # this module was itself loaded from such a file
        return Path(ours).read_text(encoding="utf-8")
    home = Path(__file__).resolve().parent.parent
    files = sorted(p for top in ("latent", "kernels") for p in (home / top).rglob("*.py"))
    named = {p.relative_to(home).as_posix(): p.read_text(encoding="utf-8") for p in files}
    sources = {name: source for name, source in named.items() if not name.startswith(_LEFT_OUT)}
    root = f"latent_{blake2b(repr(sources).encode(), digest_size=6).hexdigest()}"
    out = [_LOADER.format(files=len(sources), root=root)]
    for name, source in sources.items():
        renamed = _IMPORT.sub(rf"\1from {root}.\2", source)
        out.append(f"#@ {name}\n" + "".join(f"#| {line}".rstrip() + "\n" for line in renamed.split("\n")))
    return "".join(out)


def write(folder: str | Path) -> None:
    """Write the file into a checkpoint's folder."""
    (Path(folder) / f"{CODE}.py").write_text(text(), encoding="utf-8")

"""Latent reasoning: models that think in a loop over their own hidden state."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def _join_kernels() -> None:
    """Make our `kernels/` importable beside the Hugging Face package of the same name, where that is installed.

    Ours is a namespace folder; theirs, a regular package, would hide it, and a regular one of ours would break theirs
    and the parts of transformers that use it.
    """
    ours = str(Path(__file__).resolve().parent.parent / "kernels")
    spec = find_spec("kernels")
    if spec is not None and ours not in list(spec.submodule_search_locations or []):
        importlib.import_module("kernels").__path__.append(ours)


class _Register:
    """Tells transformers' Auto classes and lm-eval of us as soon as they are loaded, and not before: they are slow."""

    after = {  # noqa: RUF012
        "transformers.models.auto.configuration_auto": "latent.hf_config",
        "transformers.models.auto.modeling_auto": "latent.hf",
        "lm_eval.models": "latent.lm_eval_door",
    }

    def find_spec(self, name: str, path=None, target=None):
        if name not in self.after:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        load = loader.exec_module

        def load_and_register(module) -> None:
            load(module)
            importlib.import_module(self.after[name])  # registers itself

        loader.exec_module = load_and_register
        return spec


_join_kernels()
sys.meta_path.insert(0, _Register())
for _auto, _ours in _Register.after.items():
    if _auto in sys.modules:
        importlib.import_module(_ours)


def __getattr__(name: str):
    if name == "load":  # here so that `import latent` stays light
        from latent.hub import load

        return load
    if name == "Reasoner":
        from latent.generate import Reasoner

        return Reasoner
    raise AttributeError(f"module 'latent' has no attribute {name!r}")

"""Latent reasoning: models that think in a loop over their own hidden state."""


def _join_kernels() -> None:
    """Make our `kernels/` importable beside the Hugging Face package of the same name, where that is installed.

    Ours is a namespace folder; theirs, a regular package, would hide it, and a regular one of ours would break theirs
    and the parts of transformers that use it.
    """
    import importlib
    from importlib.util import find_spec
    from pathlib import Path

    ours = str(Path(__file__).resolve().parent.parent / "kernels")
    spec = find_spec("kernels")
    if spec is not None and ours not in list(spec.submodule_search_locations or []):
        importlib.import_module("kernels").__path__.append(ours)


_join_kernels()


def __getattr__(name: str):
    if name == "load":  # here so that `import latent` stays light
        from latent.hub import load

        return load
    if name == "Reasoner":
        from latent.generate import Reasoner

        return Reasoner
    raise AttributeError(f"module 'latent' has no attribute {name!r}")

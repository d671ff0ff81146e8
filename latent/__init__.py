"""Latent reasoning: models that think in a loop over their own hidden state."""


def __getattr__(name: str):
    if name == "load":  # here so that `import latent` stays light
        from latent.hub import load

        return load
    if name == "Reasoner":
        from latent.generate import Reasoner

        return Reasoner
    raise AttributeError(f"module 'latent' has no attribute {name!r}")

"""Controls of a method that loops along the sequence: all that is its own, but for what is fed back."""

from latent.backbone import Backbone
from latent.methods.config import ControlConfig
from latent.methods.sequence import AlongSequence

_made: dict[tuple[type, type], type] = {}


class Control(AlongSequence):
    """What is put before a method's class. Subclasses write a `feedback` of their own over the method's."""

    recycles = False

    def __init__(self, config: ControlConfig, backbone: Backbone):
        super().__init__(config.of, backbone)
        self.made_from = config
        if self.policy is not None and not self.policy.around:
            self.policy = None

    @property
    def lr_scales(self):
        """The method's, but for what it feeds back: that is a control's own."""
        return {name: scale for name, scale in super().lr_scales.items() if not name.startswith("feedback.")}


def controlled(by: type[Control], method: type[AlongSequence]) -> type[AlongSequence]:
    """A method's class with a control put before it, the same class each time."""
    if (by, method) not in _made:
        _made[by, method] = type(f"{by.__name__}{method.__name__}", (by, method), {})
    return _made[by, method]

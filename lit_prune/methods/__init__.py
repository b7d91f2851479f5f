"""Pruning methods, one module each. A method is a dataclass of its settings that can prune a model by them.

    @method("half_the_layers")
    @dataclass(frozen=True)
    class HalfTheLayers(ScoreAndCut):
        def recipe(self, config: Any) -> Prune:
            return self.keep(num_hidden_layers=0.5, layer_selection="last")

`prune.method=half_the_layers` selects it; its fields are the other settings of the `prune` section. Its base class is
in `lit_prune.pruning.bases`. Importing a method imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lit_prune.config import PruneMethod
from lit_prune.registry import Registry

Kind = TypeVar("Kind", bound=type[PruneMethod])

ABSENT = {
    "comp": "COMP (arXiv 2501.15255) lacks code of its authors by which its matrix-condition score could be verified",
    "peel": "PEEL (arXiv 2103.01847) is for convolutional networks, and lacks code that defines a layer's importance",
    "apt": "arXiv 2410.15567 (high accuracy without retraining) lacks code by which its formulas could be verified",
    "pbs2p": "PBS2P (arXiv 2502.01705) binarizes the weights that it keeps, and this package has no quantizer",
}
"""Published methods that are not registered, and what is missing."""

methods: Registry[type[PruneMethod]] = Registry("prune.method", package=__name__, absent=ABSENT)


def method(name: str) -> Callable[[Kind], Kind]:
    """Register a frozen dataclass as the pruning method of that name."""

    def add(kind: Kind) -> Kind:
        kind.name = name
        methods.register(name)(kind)
        return kind

    return add

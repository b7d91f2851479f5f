"""Models whose layers differ in width: importing this lets stock transformers build and load them.

transformers keeps such widths in `config.per_layer_config` but builds every layer from the config of the whole model.
Here each layer of the supported families is built from its own config. Nothing changes for other models.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_prune.models.model_family import FAMILIES


def _of_its_own_config(init: Callable[..., None]) -> Callable[..., None]:
    """Return the `__init__` of a layer, given the config of that layer."""

    @functools.wraps(init)
    def build(self: Any, config: Any, layer_idx: int) -> None:
        init(self, config.per_layer_config[layer_idx] if config.is_heterogeneous else config, layer_idx)

    return build


def _layer_class(family: str) -> Any:
    model = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[family]]
    return model._can_record_outputs["hidden_states"]


# It warns of reading the widest layer's width from the config of the model, as some configs do when they are checked.
logging.getLogger("transformers.integrations.heterogeneity").setLevel(logging.ERROR)

for _family in FAMILIES:
    _layer = _layer_class(_family)
    _layer.__init__ = _of_its_own_config(_layer.__init__)

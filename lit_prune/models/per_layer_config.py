"""Import this module to let stock transformers build and load models whose layers differ in width.

transformers stores such widths in `config.per_layer_config`, but builds every layer from the global config. This module
patches the layers of the supported families to use their own config. Other models are unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_prune.models.model_family import FAMILIES


def _of_its_own_config(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of a layer so that it receives the config of that layer."""

    @functools.wraps(init)
    def build(self: Any, config: Any, layer_idx: int) -> None:
        init(self, config.per_layer_config[layer_idx] if config.is_heterogeneous else config, layer_idx)

    return build


def _layer_class(family: str) -> Any:
    model = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[family]]
    return model._can_record_outputs["hidden_states"]


for _family in FAMILIES:
    _layer = _layer_class(_family)
    _layer.__init__ = _of_its_own_config(_layer.__init__)

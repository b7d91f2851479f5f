"""What is asked: cells, tables, profiles and runtime flags. No torch."""

from lit_prune.config.fields import (
    Changes as Changes,
)
from lit_prune.config.fields import (
    ConfigError as ConfigError,
)
from lit_prune.config.fields import (
    Scalar as Scalar,
)
from lit_prune.config.fields import (
    Size as Size,
)
from lit_prune.config.fields import (
    errors_of as errors_of,
)
from lit_prune.config.fields import (
    expand as expand,
)
from lit_prune.config.fields import (
    later as later,
)
from lit_prune.config.fields import (
    unknown as unknown,
)
from lit_prune.config.fields import (
    unknown_field as unknown_field,
)
from lit_prune.config.prune import (
    Prune as Prune,
)
from lit_prune.config.prune import (
    PruneMethod as PruneMethod,
)
from lit_prune.config.runtime import (
    Execution as Execution,
)
from lit_prune.config.schema import (
    EVIDENCE as EVIDENCE,
)
from lit_prune.config.schema import (
    Calibration as Calibration,
)
from lit_prune.config.schema import (
    Cell as Cell,
)
from lit_prune.config.schema import (
    Choices as Choices,
)
from lit_prune.config.schema import (
    Corpus as Corpus,
)
from lit_prune.config.schema import (
    Distill as Distill,
)
from lit_prune.config.schema import (
    Evaluation as Evaluation,
)
from lit_prune.config.schema import (
    Finetuning as Finetuning,
)
from lit_prune.config.schema import (
    Lora as Lora,
)
from lit_prune.config.schema import (
    Optimizer as Optimizer,
)
from lit_prune.config.schema import (
    Pretraining as Pretraining,
)
from lit_prune.config.schema import (
    Profile as Profile,
)
from lit_prune.config.schema import (
    SearchSpace as SearchSpace,
)
from lit_prune.config.schema import (
    Teacher as Teacher,
)
from lit_prune.config.schema import (
    ThroughputTest as ThroughputTest,
)
from lit_prune.config.schema import (
    name_of_shape as name_of_shape,
)

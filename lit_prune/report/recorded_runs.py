"""Read from the records how long cells took on this machine, without the statistics of a report. No torch, no scipy."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from lit_prune.config import ConfigError
from lit_prune.config.profiles import RECORDS
from lit_prune.store.environment import environment, machine

RECORD, RESULTS = "record.json", "results.csv"
"""Files of a record."""


def recorded_runs(table: str, records: Path = RECORDS) -> list[tuple[float, float]]:
    """Return FLOPs and seconds of the cells in a table's records that were computed on this machine.

    Raises:
        ConfigError: if a record cannot be read.
    """
    here, runs = machine(environment()), list[tuple[float, float]]()
    for path in sorted((records / table).glob(f"*/{RECORD}")):
        try:
            if json.loads(path.read_text())["hardware"] == [here]:
                frame = pd.read_csv(path.with_name(RESULTS))[["train_flops", "wall_seconds"]].dropna()
                runs += [(float(flops), float(seconds)) for flops, seconds in frame.to_numpy()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path.parent} is no whole record ({' '.join(str(error).split())})") from None
    return runs

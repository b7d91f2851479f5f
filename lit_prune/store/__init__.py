"""The content-addressed store of all results. No torch."""

from lit_prune.store.lease import Locked as Locked
from lit_prune.store.store import DEFAULT_ROOT as DEFAULT_ROOT
from lit_prune.store.store import Node as Node
from lit_prune.store.store import Store as Store

"""Registered parts have a name, and other packages can add their own."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from refusals import refuses

import lit_prune as lp
from lit_prune import registry
from lit_prune.losses.logit import logit_losses


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that an installed package names as a plugin."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_loaded", [])
    monkeypatch.setattr(logit_losses, "_parts", dict(logit_losses._parts))
    point = EntryPoint("mine", "lit_prune_plugin_of_a_test", registry.PLUGINS)
    monkeypatch.setattr(registry, "_plugins", lambda: (point,))
    yield tmp_path / "lit_prune_plugin_of_a_test.py"
    sys.modules.pop("lit_prune_plugin_of_a_test", None)


def test_every_registry_names_its_parts() -> None:
    found = lp.registry.names()
    assert "kld" in found["logit_losses"]
    assert all(found.values())
    assert lp.registry.logit_losses is logit_losses
    with pytest.raises(AttributeError):
        _ = lp.registry.nothing


def test_plugins_are_those_of_the_entry_point_group(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "lit_prune_plugin_of_a_test", registry.PLUGINS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.PLUGINS else [])
    assert registry._plugins.__wrapped__() == (point,)


def test_a_plugin_is_imported_when_a_registry_is_read(plugin: Path) -> None:
    plugin.write_text(
        "from lit_prune.losses.logit import logit_losses\n"
        "assert 'kld' in list(logit_losses)  # reading while the plugin is imported does not import it again\n"
        "logit_losses.register('of_a_plugin')(logit_losses['kld'])\n"
    )
    assert logit_losses["of_a_plugin"] is logit_losses["kld"]
    assert "of_a_plugin" in lp.registry.names()["logit_losses"]


def test_a_plugin_that_cannot_be_imported_is_named(plugin: Path) -> None:
    plugin.write_text("import no_such_module_anywhere\n")
    with refuses("", "mine", "no_such_module_anywhere"):
        _ = logit_losses["kld"]

"""Learned masks: scores, gates and adapters that training turns into masks, and the modules that train them."""

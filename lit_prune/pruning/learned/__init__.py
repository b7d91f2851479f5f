"""Learned masks: the units they choose, gates that apply them in a forward pass, and modules that train them."""

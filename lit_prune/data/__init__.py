"""Data: from text to packed token sequences, and the two LightningDataModules that serve them."""

"""Text -> packed sequences of tokens -> the two LightningDataModules."""

"""Text -> packed blocks of tokens -> the two LightningDataModules."""

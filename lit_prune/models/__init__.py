"""Where a Hugging Face decoder keeps its prunable parts, and where models come from."""

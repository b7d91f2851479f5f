"""Hugging Face decoders: descriptions of their prunable parts, and loading, checking and converting of models."""

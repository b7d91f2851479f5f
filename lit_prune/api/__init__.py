"""The Python door: what the commands `prune` and `distill` do, as functions. Import it as `import lit_prune`."""

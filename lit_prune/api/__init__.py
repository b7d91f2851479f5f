"""The Python API: the commands as functions. Use it with `import lit_prune`."""

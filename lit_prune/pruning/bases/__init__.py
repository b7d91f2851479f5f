"""Base classes of pruning methods: what `lit_prune.methods` subclass. Importing one imports no torch."""

"""The questions: one table a module. Importing one imports no torch, and never another."""

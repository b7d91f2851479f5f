"""The reading of the answers: figures from what the store holds. Nothing imports this, and it imports no torch."""

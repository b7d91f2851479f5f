"""Distillation: the LightningModule that holds teacher and student, its optimizer and its callbacks."""

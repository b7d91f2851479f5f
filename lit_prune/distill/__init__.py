"""Training a student: the LightningModule that holds teacher and student, its optimizer, its callbacks."""

"""Training losses: per-token losses between teacher and student, and their weights in the objective.

Conventions of all modules: forward KL is KL(teacher || student). A loss returns one number per token, summed over the
vocabulary. The caller divides the logits by the temperature, takes the mean over unmasked tokens, and multiplies by the
squared temperature only if `scale_by_temperature_squared` is set.
"""

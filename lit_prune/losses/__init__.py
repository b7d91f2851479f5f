"""What is minimised: per-token losses between teacher and student, and how they are weighed.

Convention, stated once: forward KL is KL(teacher || student); a loss gives one number a token, summed over the
vocabulary; the caller divides the logits by the temperature, takes the mean over unmasked tokens, and multiplies by
temperature squared only when asked.
"""

"""The M-step: supervised fine-tuning on the accepted pairs (Algorithm 1, lines 4 and 5)."""

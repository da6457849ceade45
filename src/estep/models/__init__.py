"""Language models: names, loading, tokens, and the memory and random numbers that they use."""

"""What a run will need, before it starts: memory, tokens and time, from configurations alone.

Nothing here reads weights, computes on a GPU or uses a network, except to read the config.json of a model on the hub
that is not in the registry.
"""

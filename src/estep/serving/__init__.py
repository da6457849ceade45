"""A trained judge behind HTTP: vLLM's OpenAI server with the route `/judge`, which asks it as its run did."""

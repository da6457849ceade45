"""A trained model as other tools take it: a folder for transformers and vLLM, a GGUF file, a model for Ollama or on a
hub."""

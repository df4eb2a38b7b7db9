"""Checkpoints in and out: Hugging Face directories, GGUF files, tokenizers and their text."""

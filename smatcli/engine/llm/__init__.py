"""`smat llm`: training, evaluation, generation and export of adapted language models."""

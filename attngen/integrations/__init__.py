"""Front doors for other libraries: Hugging Face Transformers (``integrations.transformers``)."""

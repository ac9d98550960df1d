"""Self-supervised methods that train the tokens of a tokenizer."""

"""What happens inside the language model."""

"""Images and questions from files. Nothing here knows models or pruning."""

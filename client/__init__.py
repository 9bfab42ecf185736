"""The Flower client: one class, its private data, its own network."""

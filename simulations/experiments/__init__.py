"""Several methods on the same data, split and budget."""

"""The Flower server: a bank of the classes' networks, and the rounds in which they are exchanged."""

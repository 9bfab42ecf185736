"""A run folder read back: its networks, samples, measures and audits."""

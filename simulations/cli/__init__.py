"""`fedmutual`: what a person types."""

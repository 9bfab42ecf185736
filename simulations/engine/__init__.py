"""Flower's simulation engine on Ray, started for one federation."""

"""Separate machines: credentials, checks, and a whole federation on the loopback interface."""

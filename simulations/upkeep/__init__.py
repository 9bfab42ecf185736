"""What looks after the project itself: benchmarks and a soak test."""

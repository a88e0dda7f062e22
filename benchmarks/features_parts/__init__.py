"""The parts of `benchmarks.features`, and what they share."""

"""The parts of `benchmarks.wire`: servers, load clients, and a module for each group of figures."""

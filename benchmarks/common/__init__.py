"""What several benchmarks share: servers and their peers, load clients, runs in turns."""

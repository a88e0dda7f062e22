"""One module per published figure, its peer side by side: `python -m benchmarks.NAME --quick`."""

"""Protocols: message bytes to tensors and columns, and back."""

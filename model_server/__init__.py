"""Serves a PyTorch image classifier over HTTP, with Prometheus metrics."""

import warnings

# The server needs no numpy, and torch says at its import that there is none.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

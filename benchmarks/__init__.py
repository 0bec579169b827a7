"""What attngen costs and gains, measured. ``python -m benchmarks`` runs what needs no GPU."""

"""Data sets: what is on disk, as recordings and label traces."""

"""Faces in a video: detection, mesh, localization, alignment, and one track for each person."""

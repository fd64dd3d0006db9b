"""Faces in a video: detection, mesh, localization, alignment, identity, and one track per person."""

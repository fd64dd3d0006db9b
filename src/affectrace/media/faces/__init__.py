"""Faces in video: detection, mesh, localization, alignment, identity, tracks."""

"""Alias of `affectrace.media.faces.pipeline`, kept for existing imports."""

from affectrace.media.faces.pipeline import FaceConfig as FaceConfig
from affectrace.media.faces.pipeline import FaceModels as FaceModels
from affectrace.media.faces.pipeline import FaceTrack as FaceTrack
from affectrace.media.faces.pipeline import SeenFace as SeenFace
from affectrace.media.faces.pipeline import align_face as align_face
from affectrace.media.faces.pipeline import select_person as select_person
from affectrace.media.faces.pipeline import track_faces as track_faces

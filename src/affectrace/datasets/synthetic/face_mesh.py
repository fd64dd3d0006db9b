"""The mesh of the photographed face: its landmarks by name, and what every expression and every shape moves."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
from numpy.typing import NDArray

# Landmark numbers of MediaPipe's face mesh ("right" is the subject's right, left in the picture)

CORNERS = (61, 291)
INNER_CORNERS = (78, 308)
UPPER_OUTER = (185, 40, 39, 37, 0, 267, 269, 270, 409)
UPPER_INNER = (191, 80, 81, 82, 13, 312, 311, 310, 415)
LOWER_INNER = (95, 88, 178, 87, 14, 317, 402, 318, 324)
LOWER_OUTER = (146, 91, 181, 84, 17, 314, 405, 321, 375)
RIGHT_LID, RIGHT_LOWER_LID = (246, 161, 160, 159, 158, 157, 173), (7, 163, 144, 145, 153, 154, 155)
LEFT_LID, LEFT_LOWER_LID = (466, 388, 387, 386, 385, 384, 398), (249, 390, 373, 374, 380, 381, 382)
EYE_CORNERS = (33, 133, 362, 263)
RIGHT_BROW, LEFT_BROW = (70, 63, 105, 66, 107), (300, 293, 334, 296, 336)  # outer to inner
RIGHT_BROW_LOW, LEFT_BROW_LOW = (46, 53, 52, 65, 55), (276, 283, 282, 295, 285)
CHEEKS = (50, 280, 205, 425, 36, 266, 101, 330)
CHIN = (152, 148, 377, 175, 199, 200, 18, 83, 313, 201, 421, 208, 428, 176, 400)
JAW = (172, 136, 150, 149, 378, 379, 365, 397, 58, 288)
NOSE = (1, 4, 5, 195, 6, 168, 48, 278, 64, 294, 98, 327, 2)
CONTOUR = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
FOREHEAD = (151, 9, 8, 69, 299, 104, 333, 108, 337)
UNDER_LIP = (18, 83, 313)
UPPER_LIP, LOWER_LIP = UPPER_OUTER + UPPER_INNER, LOWER_INNER + LOWER_OUTER
NODES = (
    CORNERS + INNER_CORNERS + EYE_CORNERS + RIGHT_LID + RIGHT_LOWER_LID + LEFT_LID + LEFT_LOWER_LID
    + RIGHT_BROW + LEFT_BROW + RIGHT_BROW_LOW + LEFT_BROW_LOW + CHEEKS + CHIN + JAW + NOSE + CONTOUR + FOREHEAD
)  # fmt: skip


NOSE_WINGS = (129, 358)
FOLDS = ((129, 203, 206, 216, 212), (358, 423, 426, 436, 432))  # from the nose's wings round the mouth
RIGHT_CHEEK = (116, 117, 118, 119, 100, 126, 129, 98, 165, 92, 186, 57, 43, 202, 210, 169, 135, 138, 215, 177, 137, 123)
LEFT_CHEEK = (
    345,
    346,
    347,
    348,
    329,
    355,
    358,
    327,
    391,
    322,
    410,
    287,
    273,
    422,
    430,
    394,
    364,
    367,
    435,
    401,
    366,
    352,
)
LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)

# What each expression moves: (landmarks, outwards, down) in units of the distance between the outer eye corners.
MOVES: dict[str, list[tuple[tuple[int, ...], float, float]]] = {
    "smile": [
        (CORNERS + INNER_CORNERS, 0.085, -0.075), ((185, 191, 40, 80, 409, 415, 270, 310), 0.055, -0.045),
        ((39, 81, 269, 311), 0.03, -0.015), ((146, 95, 375, 324), 0.06, -0.05), ((91, 88, 321, 318), 0.04, -0.015),
        ((181, 178, 405, 402), 0.02, 0.005), ((84, 87, 17, 14, 314, 317), 0.0, 0.012), ((205, 425), 0.03, -0.04),
        ((50, 280, 36, 266), 0.015, -0.045), ((101, 330), 0.0, -0.025), ((144, 145, 153, 373, 374, 380), 0.0, -0.012),
        ((64, 294, 48, 278), 0.012, -0.008),
    ],
    "jaw": [
        ((14,), 0.0, 0.42), ((87, 317), 0.0, 0.405), ((178, 402), -0.005, 0.36), ((88, 318), -0.015, 0.28),
        ((95, 324), -0.03, 0.18), ((17,), 0.0, 0.40), ((84, 314), 0.0, 0.385), ((181, 405), -0.005, 0.35),
        ((91, 321), -0.02, 0.28), ((146, 375), -0.035, 0.185), (CORNERS + INNER_CORNERS, -0.05, 0.09),
        ((18, 83, 313, 200, 199, 201, 421), 0.0, 0.37), ((208, 428), 0.0, 0.35),
        ((152, 148, 377, 175, 176, 400), 0.0, 0.34), ((149, 378, 150, 379), 0.0, 0.26), ((136, 365), -0.01, 0.17),
        ((172, 397), -0.015, 0.09), ((58, 288), 0.0, 0.03), ((205, 425), -0.015, 0.04),
        ((13, 0, 82, 312, 37, 267), 0.0, -0.025),
    ],
    "wide": [
        (CORNERS + INNER_CORNERS, 0.09, 0.0), ((185, 191, 409, 415, 146, 95, 375, 324), 0.07, 0.0),
        ((40, 80, 270, 310, 91, 88, 321, 318), 0.05, 0.0), ((39, 81, 269, 311, 181, 178, 405, 402), 0.025, 0.0),
        ((205, 425), 0.05, 0.0), ((208, 428), 0.03, 0.0), ((50, 280, 36, 266), 0.015, 0.0),
    ],
    "press": [
        (UPPER_OUTER, 0.0, 0.05), (UPPER_INNER, 0.0, 0.005), (LOWER_OUTER, 0.0, -0.055), (LOWER_INNER, 0.0, -0.005),
        ((18, 83, 313), 0.0, -0.03), ((200, 199), 0.0, -0.02),
    ],
    "teeth": [
        (UPPER_INNER[1:-1], 0.0, -0.02), (UPPER_OUTER[1:-1], 0.0, -0.02), ((48, 278, 64, 294), 0.015, -0.015),
        (LOWER_INNER[1:-1], 0.0, 0.015),
    ],
    "brows": [
        (RIGHT_BROW + LEFT_BROW, 0.0, -0.12), (RIGHT_BROW_LOW + LEFT_BROW_LOW, 0.0, -0.10), ((9, 8), 0.0, -0.05),
        ((108, 337, 69, 299, 104, 333), 0.0, -0.07), ((151,), 0.0, -0.03), (RIGHT_LID + LEFT_LID, 0.0, -0.008),
    ],
    "inner_brows": [
        ((107, 336, 55, 285), -0.02, -0.095), ((66, 296, 65, 295), -0.015, -0.065), ((105, 334, 52, 282), 0.0, -0.02),
        ((63, 293, 53, 283), 0.0, 0.015), ((70, 300, 46, 276), 0.0, 0.035), ((108, 337), -0.01, -0.07),
        ((69, 299), 0.0, -0.03), ((9, 151), 0.0, -0.05), ((8,), 0.0, -0.04),
    ],
    "furrow": [
        ((107, 336), -0.055, 0.10), ((66, 296), -0.05, 0.075), ((55, 285), -0.05, 0.085), ((65, 295), -0.04, 0.065),
        ((105, 334, 52, 282), -0.02, 0.035), ((70, 300, 63, 293), 0.0, -0.02), ((9, 8), 0.0, 0.06), ((168,), 0.0, 0.02),
        ((157, 158, 173, 384, 385, 398), 0.0, 0.02),
    ],
    "eyes": [
        ((159, 386), 0.0, -0.055), ((160, 158, 387, 385), 0.0, -0.048), ((161, 157, 388, 384), 0.0, -0.032),
        ((246, 173, 466, 398), 0.0, -0.014), ((145, 374), 0.0, 0.018), ((144, 153, 373, 380), 0.0, 0.014),
    ],
    "squint": [
        ((145, 374), 0.0, -0.03), ((144, 153, 373, 380), 0.0, -0.026), ((163, 154, 390, 381), 0.0, -0.016),
        ((159, 386, 160, 158, 387, 385), 0.0, 0.012), ((50, 280, 101, 330), 0.0, -0.02),
    ],
}  # fmt: skip

SHAPE_MOVES: dict[str, list[tuple[tuple[int, ...], float, float]]] = {
    "broad": [((454, 323, 361, 132, 93, 234, 127, 356), 0.05, 0.0), ((172, 397, 58, 288, 136, 365), 0.05, 0.0)],
    "long_chin": [((152, 148, 377, 175, 176, 400), 0.0, 0.06), ((149, 378, 150, 379, 199), 0.0, 0.045)],
    "wide_mouth": [
        (CORNERS + INNER_CORNERS, 0.04, 0.0), ((185, 409, 146, 375, 191, 415, 95, 324), 0.03, 0.0),
        ((40, 270, 91, 321, 80, 310, 88, 318), 0.02, 0.0),
    ],
    "wide_eyes": [
        (EYE_CORNERS + RIGHT_LID + LEFT_LID + RIGHT_LOWER_LID + LEFT_LOWER_LID, 0.03, 0.0),
        (RIGHT_BROW + LEFT_BROW + RIGHT_BROW_LOW + LEFT_BROW_LOW, 0.025, 0.0),
    ],
    "large_eyes": [(RIGHT_LID + LEFT_LID, 0.0, -0.018), (RIGHT_LOWER_LID + LEFT_LOWER_LID, 0.0, 0.016)],
    "low_brows": [(RIGHT_BROW + LEFT_BROW + RIGHT_BROW_LOW + LEFT_BROW_LOW, 0.0, 0.025)],
    "long_nose": [((1, 4, 2, 48, 278, 64, 294, 98, 327), 0.0, 0.03), ((5, 195), 0.0, 0.015)],
    "full_lips": [((37, 0, 267, 39, 269), 0.0, -0.02), ((84, 17, 314, 181, 405), 0.0, 0.025)],
}  # fmt: skip


EXPRESSIONS = (*MOVES, "close")  # "close" is worked out from the photograph's own gap between the lips
MOTIONS = ("yaw", "pitch", "roll", "dx", "dy", "zoom")
SHAPES = tuple(SHAPE_MOVES)


def mesh_points() -> NDArray[np.float64]:
    """(468, 3) mesh of the photograph: x, y in its pixels, z negative towards the camera."""
    text = resources.files("affectrace.datasets").joinpath("astronaut_mesh.json").read_text(encoding="utf-8")
    return np.array(json.loads(text)["points"])

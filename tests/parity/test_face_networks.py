"""The shipped face networks against the original runtimes (TensorFlow Lite, Keras) on a face and on coloured blocks.

face_networks.npz holds the pictures and the originals' outputs: `python training/face_networks.py --reference`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import affectrace
from affectrace.features.face import ExpressionNetwork

NETWORKS = Path(affectrace.__file__).parent / "media" / "faces" / "networks"
REFERENCE = Path(__file__).with_name("face_networks.npz")
TOLERANCE = 1e-5  # of the largest output; float32 on other processors


def network_input(name: str, size: int, picture: np.ndarray) -> np.ndarray:
    """A (192, 192, 3) uint8 picture as the network takes it; smaller inputs take the nearest pixels."""
    index = np.arange(size) * 192 // size
    x = picture[index][:, index].astype(np.float32)
    if name == "expression":
        return (x[:, :, 1] / 127.5 - 1)[None, None]  # the green channel for grey
    return (x / 255 if name == "face_mesh" else x / 127.5 - 1)[None]


@pytest.mark.parametrize("name", ["blazeface_short", "blazeface_full", "face_mesh", "expression"])
def test_a_shipped_network_computes_what_the_original_does(name: str) -> None:
    session = ort.InferenceSession(NETWORKS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    found: dict[str, list[np.ndarray]] = {}
    with np.load(REFERENCE) as reference:
        for picture in ("face", "blocks"):
            x = network_input(name, given.shape[2], reference[picture])
            for output, ours in zip(session.get_outputs(), session.run(None, {given.name: x}), strict=True):
                expected = reference[f"{name}.{picture}.{output.name}"]
                ours = ours[:, ::5] if ours.ndim == 3 else ours  # every fifth anchor is kept
                np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
                found.setdefault(output.name, []).append(expected)
    for name, (face, blocks) in found.items():
        assert np.abs(face - blocks).max() > 1e-3, f"{name} does not depend on the picture"


def test_the_8_bit_network_is_near_the_trained_one() -> None:
    """expression_ferplus.npz: `python training/expression_ferplus.py export --reference`."""
    network = ExpressionNetwork.load("ferplus")
    with np.load(REFERENCE.with_name("expression_ferplus.npz")) as reference:
        ours = {picture: network.measure(reference[picture][None]) for picture in ("face", "blocks")}
        for picture, p in ours.items():
            np.testing.assert_allclose(p, reference[f"{picture}.probabilities"], rtol=0, atol=0.05)
    assert np.abs(ours["face"] - ours["blocks"]).max() > 0.3

"""The released presets against a second, straightforward implementation of the authors' two networks.

Written from the facts of their architecture with torch's own MultiheadAttention and transformers' own BeitLayer; random
weights, saved as they would save them, converted, compared.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from affectrace.errors import FormatError
from affectrace.models.checkpoint import convert
from affectrace.models.maven import Maven, MavenConfig
from affectrace.models.maven_convert import convert_state
from authors_maven import ReleasedBeit, ReleasedMlp, old_names, shaken
from near import assert_near


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def batch(b: int, t: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((b, t, 1024), (b, 768), (b, 768)))  # type: ignore[return-value]


def ours(model: Maven, frames: Tensor, audio: Tensor, text: Tensor) -> dict[str, Tensor]:
    return {"visual": frames, "audio": audio[:, None], "text": text[:, None]}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(old_names, "module."), (dict, "")],  # DataParallel saves with a prefix
    ids=["transformers 4", "transformers 5"],
)
def test_beit_variant_equals_the_authors(tmp_path: Path, names, prefix: str) -> None:
    reference = shaken(ReleasedBeit(depth=2))
    file = tmp_path / "best_model.pth"
    torch.save({prefix + name: tensor for name, tensor in names(reference.state_dict()).items()}, file)
    converted = convert(file, "maven")
    assert converted.unused == {}
    assert converted.model.config == MavenConfig.released_beit(
        encoder_depth=2, beit_init="converted from the authors' checkpoint"
    )
    for b, t in ((1, 1), (2, 37)):
        x = batch(b, t)
        with torch.no_grad():
            expected, (got, state) = reference(*x), converted.model(ours(converted.model, *x))
        assert state is None
        assert_near(got, expected)


def test_mlp_variant_equals_the_authors(tmp_path: Path) -> None:
    reference = shaken(ReleasedMlp())
    file = tmp_path / "best_model.pth"
    torch.save(reference.state_dict(), file)
    converted = convert(file, "maven")
    assert converted.model.config == MavenConfig.released_mlp()
    for b, t in ((1, 1), (2, 37)):
        x = batch(b, t)
        with torch.no_grad():
            theta, intensity = reference(*x).unbind(-1)
            got = converted.model.polar(ours(converted.model, *x))
            va, _ = converted.model(ours(converted.model, *x))
        assert_near(got[0], theta)
        assert_near(got[1], intensity)
        assert_near(va, torch.stack((intensity * theta.cos(), intensity * theta.sin()), -1))


def test_padded_frames_count_unless_masked_as_in_the_authors_batches() -> None:
    """They pad frames with 0 and attend to them; the same comes out without a mask, another with it."""
    reference = shaken(ReleasedMlp())
    model = convert_state(reference.state_dict()).model
    frames, audio, text = batch(1, 20)
    padded = torch.cat((frames, torch.zeros(1, 12, 1024)), dim=1)
    valid = {"visual": (torch.arange(32) < 20)[None]}
    with torch.no_grad():
        theirs = reference(padded, audio, text)
        unmasked = torch.stack(model.polar(ours(model, padded, audio, text)), -1)
        masked = torch.stack(model.polar(ours(model, padded, audio, text), valid), -1)
        alone = torch.stack(model.polar(ours(model, frames, audio, text)), -1)
    assert_near(unmasked, theirs)
    assert_near(masked[:, :20], alone)
    assert float((masked[:, :20] - theirs[:, :20]).abs().max()) > 1e-4


def test_gradients_equal_the_authors_too() -> None:
    reference = shaken(ReleasedMlp())
    model = convert_state(reference.state_dict()).model
    x = [t.requires_grad_() for t in batch(2, 9)]
    expected = torch.autograd.grad(reference(*x).square().sum(), x)
    got = torch.autograd.grad(torch.stack(model.polar(ours(model, *x)), -1).square().sum(), x)
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).abs().max()) < 1e-5 * float(b.abs().max())


@pytest.mark.slow
def test_beit_variant_equals_the_authors_at_full_size() -> None:
    reference = shaken(ReleasedBeit(depth=12))
    model = convert_state(reference.state_dict()).model
    x = batch(1, 150)
    with torch.no_grad():
        assert_near(model(ours(model, *x))[0], reference(*x))


def test_position_bias_of_the_image_grid_is_named_as_unused() -> None:
    state = old_names(ReleasedBeit(depth=1).state_dict())
    name = "beit3_encoders.0.layer.0.attention.attention.relative_position_bias.relative_position_bias_table"
    converted = convert_state(state | {name: torch.zeros(732, 12)})
    assert list(converted.unused) == [name]
    assert "image grid" in converted.unused[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.clear(), "multihead_attention.video_proj.weight"),
        (lambda s: s.pop("multihead_attention.layer_norm.bias"), "multihead_attention.layer_norm.bias is missing"),
        (lambda s: s.pop("multihead_attention.attn_a2t.in_proj_bias"), "attn_a2t.in_proj_bias is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not known"),
        (lambda s: s.update({"regressor.fc.6.bias": torch.zeros(3)}), "regressor.fc.6.bias is (3,), not (2,)"),
        (
            lambda s: s.update({"multihead_attention.attn_v2x.in_proj_bias": torch.zeros(3)}),
            "attn_v2x.in_proj_bias is not known",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message: str) -> None:
    state = dict(ReleasedMlp().state_dict())
    change(state)
    with pytest.raises(FormatError, match="authors") as caught:
        convert_state(state, where="model.pth")
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.pth: ")

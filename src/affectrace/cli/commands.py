"""The options of every command, and their help. Loads neither numpy nor the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Len
from cyclopts import Group, Parameter

from affectrace.cli.options import ANALYSIS, INPUTS, MODEL, OUTPUT, TRAINING, Common, build, flat, under
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
    """Predict valence and arousal for every frame of recordings.

    Results go to OUT: one CSV per recording and person, a summary of several recordings, run.json with all options.
    Estimates describe what is shown and heard, not what a person feels. Nothing leaves this machine.
    """

    inputs: Files = field(default=(), kw_only=False)
    """Videos, sound files, image folders, folders of these, or quoted patterns."""
    out: Path = Path("affectrace_out")
    """Folder for results."""
    format: Annotated[tuple[Format, ...], Len(1)] = ("csv",)
    """Trace formats to write."""
    report: bool = False
    """Write an HTML report for each recording, and a summary page for several."""
    overlay: bool = False
    """Write each video with its trace drawn on it."""
    conditions: Path | None = None
    """CSV with columns recording,condition: adds a table per condition."""
    resume: bool = False
    """Skip recordings whose results are in OUT, made with the same options from the same input."""
    model: tuple[str, ...] = ("zero-shot",)
    """zero-shot, the folder of a trained model (run/best), or user/model@COMMIT of the Hugging Face Hub. The traces of
    several trained models, which must read the same features, are averaged."""
    features: Annotated[tuple[str, ...], under(MODEL)] = ()
    """For a trained model: STREAM=EXTRACTOR instead of the checkpoint's, such as an encoder with its weights:
    visual=mae-vit-l=FOLDER."""
    device: str = "auto"
    """Device of a trained model and its encoders: cpu, cuda, cuda:1, or auto."""
    shares: bool = False
    """For a trained model of several modalities: add columns share_visual, share_audio, ... (and a lane in the report):
    how much the prediction changes without each, per second, as shares. Runs the model once more per modality."""
    windows: str | None = None
    """For a causal trained model: SIZE:STRIDE in frames. It reads overlapping windows, cross-faded, instead of carrying
    its state through the recording."""
    smooth: str = "none"
    """Smooth each trace: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: the choice
    stored with the trained model. Extra columns are not smoothed."""
    analysis: Annotated[AnalysisConfig, flat(ANALYSIS)] = field(default_factory=AnalysisConfig)
    speech: Annotated[bool, under(ANALYSIS)] = True
    """Recognise words, unless --transcript gives them."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Common):
    """One offline HTML page from traces: video beside its time lines, circumplex, words, quality flags."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files (.csv, .parquet, .json), or folders of them."""
    out: Path = Path("report.html")
    """The page to write."""
    video: Path | None = None
    """The recording, if it was moved."""
    media: Literal["auto", "inside", "beside", "none"] = "auto"
    """Embed the recording in the page, link to the file, or leave it out. auto: embedded if it is small and playable in
    browsers, else as a small preview, else linked."""


@dataclass(frozen=True, kw_only=True)
class OverlayOptions(Common):
    """The video with its trace and face box drawn on it; the sound is kept."""

    traces: Files = field(default=(), kw_only=False)
    """Traces of one recording, one per person."""
    video: Path | None = None
    """The recording; by default the path the trace was made from."""
    out: Path = Path("overlay.mp4")
    """The video to write."""
    drawing: Annotated[OverlayConfig, flat(OUTPUT)] = field(default_factory=OverlayConfig)


@dataclass(frozen=True, kw_only=True)
class SummaryOptions(Common):
    """Tables per recording and, with --conditions, per condition."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files, or folders of them."""
    conditions: Path | None = None
    """CSV with columns recording,condition."""
    out: Path | None = None
    """CSV file to write the table to."""


@dataclass(frozen=True, kw_only=True)
class SynthOptions(Common):
    """Recordings with known valence and arousal, in the layout of Aff-Wild2: real media, labels, crops, words, lists.

    Smile follows valence, eyes, brows and mouth follow arousal; words follow valence, pitch, loudness and rate of the
    voice follow arousal. Labels depend on the past. The same seed makes the same bytes.
    """

    out: Path = field(kw_only=False)
    """A new folder; it appears when it is complete."""
    made: Annotated[SynthConfig, flat(MADE)] = field(default_factory=SynthConfig)
    jobs: Annotated[int, Ge(0), under(MADE)] = 0
    """Processes; 0: one per core. The result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Common):
    """Make a data set from your own tables, or from the Aff-Wild2 layout: a manifest, and a table of all problems.

    Tables: features and labels (CSV, TSV, Parquet, NPZ), each on its own clock; several raters, with their agreement
    and one gold standard; words. A JSON file describes them (docs/data.md has the fields), or options in simple cases:
    `affectrace import study --features physiology=signals/{id}.csv --labels ratings/{id}.csv --time seconds`.
    """

    data: Annotated[Path, under(INPUTS)] = field(kw_only=False)
    """A description (JSON), a folder of tables (with --features or --labels), or the folder of an Aff-Wild2 tree."""
    out: Path = Path("dataset")
    """Folder for manifest.json and problems.csv; for tables also features, labels, raters and transcripts."""
    tables: Path | None = None
    """Folder to which a description's paths are relative; by default the description's own."""
    features: Annotated[tuple[str, ...], under(INPUTS)] = ()
    """Without a description: MODALITY=PATH of each table, with {id} for the recording's id. Its numeric columns are
    features, except labels, times and row counts; columns left out are listed."""
    labels: str | None = None
    """Without a description: path of tables with columns valence and arousal."""
    time: str | None = None
    """Column of times in seconds, in all these tables."""
    rate_hz: FrameRate | None = None
    """Rows per second of the features, if they have no times (25, 30000/1001)."""
    label_rate_hz: FrameRate | None = None
    """Rows per second of the labels; by default those of the features."""
    low: float = -1.0
    """Lower end of the label scale, mapped to -1."""
    high: float = 1.0
    """Upper end of the label scale, mapped to 1."""
    folds: Annotated[int, under(OUTPUT)] = 0
    """Number of folds for training and validation recordings, grouped by video and subject."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Common):
    """Features of recordings, one file per recording and extractor. A stopped run continues where it was.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Faces: fer,
    mesh-geometry. Sound: hubert-base, wav2vec2-base, whisper-tiny.en (with -layerK: another hidden state than the
    last), prosody. Words: roberta-base, minilm-l6. NAME=FOLDER or NAME=user/model@COMMIT uses other weights; A|B is
    the first one available; visual, audio, text are such lists.
    """

    data: Files = field(default=(), kw_only=False)
    """A data set (manifest.json, its folder, or the Aff-Wild2 layout), or videos, sound files and folders of them."""
    features: Annotated[str, under(INPUTS)] = "visual,audio,text"
    """Extractor names, separated by commas."""
    out: Path = Path("features")
    """Folder for feature files: OUT/NAME/RECORDING.safetensors."""
    extraction: Annotated[ExtractConfig, flat(EXTRACTION)] = field(default_factory=ExtractConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Common):
    """Tune an encoder on labelled recordings, or continue MAE pre-training on unlabelled faces.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Sound:
    hubert-base, wav2vec2-base, whisper-tiny.en. Words: roberta-base, minilm-l6. NAME=FOLDER starts from other weights
    (transformers' layout, or a .pth of the MAE repository), NAME=user/model@COMMIT from a model of the Hub.

    OUT gets best/ and last/ (for `affectrace extract --features NAME=OUT/best`), log.jsonl, steps.csv, validations.csv,
    run.json and options.json, and media/ with face crops of videos and decoded sound.
    """

    encoder: str = field(default="mae-vit-l", kw_only=False)
    """Encoder: NAME or NAME=WEIGHTS."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout. With --objective mae also a folder of videos or of
    folders of face crops."""
    out: Path = Path("tuned")
    """Folder for weights and logs."""
    expressions: str | None = None
    """Labels of --objective expression: column:NAME of the manifest, a CSV file (recording,label and frame or
    start_s,end_s), or a folder of <recording>.txt as in the ABAW expression challenge."""
    fold: int = 0
    """0: the official split; k: fold k of the manifest is held out."""
    media: Path | None = None
    """Folder for face crops of videos and decoded sound, to share between runs. Default: OUT/media."""
    resume: bool = False
    """Continue the run in OUT."""
    tuning: Annotated[FinetuneConfig, flat(TRAINING)] = field(default_factory=FinetuneConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainingSetup, Common):
    """Options of `train` and `crossval`."""

    model: str = field(default="mamba-va", kw_only=False)
    """Model name."""
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

    Settings follow the model, the fold and --recipe (for mamba-va those of its authors: fold 0 windows 1000/800, lr
    3e-4, weight decay 1e-2, dropout .3; folds 1-5 windows 300/200, lr 3e-5, weight decay 1e-3, dropout .2); the
    command line overrides them. The defaults shown below are those without a recipe.
    OUT gets best/ and last/ (checkpoints; best/README.md is the model card), log.jsonl, steps.csv, validations.csv,
    tensorboard/ if installed, run.json and options.json.
    """

    fold: int = 0
    """0: the official split; k: fold k is held out (of the manifest's folds, else of five new ones)."""
    resume: bool = False
    """Continue the run in OUT."""


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(TrainingOptions):
    """Train and score a model on every fold. A stopped run continues inside its fold.

    OUT gets fold_K/ (as `affectrace train` writes it, and held_out/: the traces of the recordings held out) and
    crossval.json: CCC of every fold with bootstrap intervals, their mean, all held-out recordings pooled. For mamba-va
    on Aff-Wild2 the table includes Table 1 of its paper. Settings follow the model, each fold and --recipe, as in
    `affectrace train`.

    With --finetune the encoder is tuned, its features are extracted and the model is trained in every fold, without the
    held-out recordings: fold_K/ also gets encoder/ and features/. Features of an encoder that was tuned on held-out
    recordings are refused.
    """

    out: Path = Path("crossval")
    """Folder for the folds."""
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """0 is the official split, 1 to 5 are cross-validation."""
    choose: Literal["inner", "last", "scored"] = "inner"
    """Which checkpoint is scored. inner: the best on a fifth of the training recordings, set apart. last: the last one,
    trained on all of them. scored: the best on the scored recordings themselves, as the authors do on the official
    split; only with --folds 0 and --recipe authors, and marked."""
    finetune: str | None = None
    """Encoder to tune in every fold, as in `affectrace finetune` (mae-vit-l, or NAME=WEIGHTS); other streams come from
    --features."""
    tuning: Annotated[FinetuneConfig, under(FOLD_TUNING)] = field(default_factory=FinetuneConfig)
    extraction: Annotated[ExtractConfig, under(FOLD_EXTRACTION)] = field(default_factory=ExtractConfig)
    published: bool = True
    """For mamba-va on Aff-Wild2: show Table 1 of its paper (fold 0, and the mean of folds 1 to 5)."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(Common):
    """Options of commands that run trained models on the features of a data set."""

    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    store: Path = Path("features")
    """Folder written by `affectrace extract`."""
    accept_features: bool = False
    """Use features of another extractor than in training; the result is marked."""
    device: str = "cpu"
    """Device of the models: cpu, cuda, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StoreOptions):
    """Options of commands that take models or traces."""

    smooth: str = "none"
    """Smooth predictions first: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: the
    choice stored with the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ModelOptions):
    """Options of commands that take a model, an ensemble, or traces."""

    predictions: Files = field(default=(), kw_only=False)
    """A checkpoint folder (several with --ensemble), or trace files and folders of them."""
    ensemble: bool = False
    """Average the predictions of several checkpoints (folds, seeds, models)."""
    weights: tuple[float, ...] = ()
    """Weight of each checkpoint of an ensemble; by default equal."""


@dataclass(frozen=True, kw_only=True)
class ScoredOptions(ModelOptions):
    """Options of commands that score."""

    split: Literal["train", "validation", "test"] = "validation"
    """Which recordings (with --fold 0)."""
    fold: int = 0
    """k > 0: the recordings held out in fold k instead of a split."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the bootstrap."""
    out: Path | None = None
    """JSON file for all results."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ScoredOptions, EnsembleOptions):
    """Score a trained model, or traces, against a data set's labels."""

    features: tuple[str, ...] = ()
    """STREAM=EXTRACTOR: read other features of the store than the checkpoint names."""
    windows: str | None = None
    """For causal checkpoints: SIZE:STRIDE in frames. They read overlapping windows, cross-faded, instead of carrying
    their state through the recording."""
    by: str | None = None
    """Column of the manifest (or subject, fold): score each group, and its difference from the others."""
    smoothing_curve: bool = False
    """Score again after smoothing with several methods and windows."""
    keep_smoothing: bool = False
    """Store the best of --smoothing-curve with the checkpoint, for --smooth auto. For validation data only."""
    drop: tuple[str, ...] = ()
    """Modalities to mask out of a checkpoint's input (audio, text, ...)."""
    modalities: bool = False
    """Score a checkpoint with each modality alone, each pair, ..., all (the others masked out), with intervals."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ScoredOptions):
    """Several models on the frames all of them predict, with paired intervals."""

    models: Files = field(default=(), kw_only=False)
    """Checkpoint folders or folders of traces, each as PATH or NAME=PATH; NAME=PATH,PATH,... averages checkpoints."""
    published: bool = True
    """On the Aff-Wild2 validation set: include its published figures (tables in the Mamba-VA paper)."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(EnsembleOptions):
    """The ABAW submission file from the organisers' sample, checked; or, with --check, the check alone."""

    sample: Path | None = None
    """The organisers' sample, which lists the frames. By default the data set's, or
    CVPR_8th_ABAW_VA_test_set_sample.txt."""
    out: Path = Path("predictions.txt")
    """File to write."""
    check: Path | None = None
    """Check this file and write none."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(StoreOptions):
    """Attention maps of a trained model, the words and moments it attends to most, and each modality's share.

    OUT/RECORDING/ gets attention.safetensors (weights with the times of queries and keys, and the words), looked_at.csv
    (attention on every word and moment, relative to uniform), trace.csv (share_visual, share_audio, ... per second) and
    report.html. Attention is not explanation; a share is the change of the prediction without that modality.
    """

    model: Files = field(default=(), kw_only=False)
    """A checkpoint folder of a model with attention between modalities (maven)."""
    recording: tuple[str, ...] = ()
    """Ids of recordings of the data set."""
    out: Path = Path("attention")
    """Folder to write to."""
    start_s: float | None = None
    """Only windows that end after this time, in seconds."""
    end_s: float | None = None
    """Only windows that begin before this time, in seconds."""
    report: bool = True
    """Write report.html."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Common):
    """Convert the authors' checkpoint to an affectrace model, for predict, evaluate, compare and export.

    The file is read as tensors only: nothing in it is executed. Every tensor is used, or named with the reason.
    """

    checkpoint: Path = field(kw_only=False)
    """The authors' .pt, .pth or .safetensors file."""
    source: Annotated[Literal["charon", "maven"], Parameter(name="--from", group=INPUTS)]
    """Its repository: charon (Mamba-VA, FreedomPuppy77/Charon) or maven (Vrushank-Ahire/MAVEN_8th_ABAW, both
    networks)."""
    out: Path = Path("converted")
    """Folder to write."""
    standardise: bool = False
    """maven: standardise each input by its own mean and deviation, as the authors' loader does."""


@dataclass(frozen=True, kw_only=True)
class PushOptions(Common):
    """Upload a trained model to the Hugging Face Hub: the checkpoint's files and its card, nothing else of the folder.

    Use it with `affectrace predict --model USER/MODEL@COMMIT`. Needs an account: `hf auth login`.
    """

    folder: Path = field(default=Path("run/best"), kw_only=False)
    """Folder written by `affectrace train` or `convert`."""
    repo_id: str = field(default="", kw_only=False)
    """user/model; created if missing."""
    public: bool = False
    """Make a new repository public."""
    message: str = ""
    """Commit message; by default the model's name and hash."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Common):
    """Traces in another format, or a trained model as ONNX.

    A causal model becomes a step: features and state in, valence, arousal and new state out. Other models become a
    window of frames. The exported model is compared with torch before it is written (difference at most 1e-5).
    """

    inputs: Files = field(default=(), kw_only=False)
    """Trace files and folders of them; with --to onnx one checkpoint folder."""
    to: Annotated[Literal["csv", "parquet", "json", "onnx"], Parameter(alias="--format", group=OUTPUT)] = "csv"
    """Format to write."""
    out: Path = Path("affectrace_out")
    """Folder to write to; with --to onnx this may be the file, NAME.onnx."""
    frames: int | None = None
    """onnx: frames per call; by default 1 for a causal model, 256 for others."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Common):
    """List, fetch or verify pretrained weights."""

    action: Literal["list", "fetch", "verify"] = field(default="list", kw_only=False)
    """list: all sources with licence and state; fetch: download; verify: hash every file again."""
    names: Files = field(default=(), kw_only=False)
    """Names of sources; by default those that `predict` needs."""
    all: bool = False
    """All sources, including optional ones."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Common):
    """Check the installation, weights and hardware; with --data, a data set.

    Exit code 1: something is missing, or something in the data set needs attention (leaks between sets, missing or
    broken files). Problems that were handled are listed and leave it 0.
    """

    data: Path | None = None
    """A data set (Aff-Wild2 layout, manifest.json or its folder): counts, one table of all problems, leaks between
    sets, agreement of raters. Or a folder of recordings: whether they can be opened."""

"""The options of every command, and their help. Loads neither numpy nor the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Interval, Len
from cyclopts import Group, Parameter

from affectrace.cli.options import ANALYSIS, INPUTS, MODEL, OUTPUT, TRAINING, Common, build, flat, under
from affectrace.config import Positive
from affectrace.datasets.synthetic import SynthConfig
from affectrace.features.config import AnalysisConfig, ExtractConfig, FrameRate
from affectrace.finetune.config import FinetuneConfig
from affectrace.train.config import TrainConfig, TrainingSetup, recipe

Files = tuple[str, ...]
Format = Literal["csv", "parquet", "json"]
MADE, EXTRACTION = (Group(name, sort_key=3) for name in ("Recordings", "Extraction"))
FOLD_TUNING, FOLD_EXTRACTION = (Group(f"{name} (with --finetune)", sort_key=12) for name in ("Tuning", "Extraction"))


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Common):
    """Predict valence and arousal for every frame of recordings.

    Results go to OUT: one CSV a recording (and person), a summary where there are several, run.json with all options.
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
    """Skip recordings that OUT already holds, made with the same options from the same input."""
    model: tuple[str, ...] = ("zero-shot",)
    """zero-shot, the folder of a trained model (run/best), or user/model@COMMIT of the Hugging Face Hub. Several
    trained ones that read the same features: the mean of their traces."""
    features: Annotated[tuple[str, ...], under(MODEL)] = ()
    """For a trained model: STREAM=EXTRACTOR where it is not what the checkpoint names, above all where an encoder's
    weights are: visual=mae-vit-l=FOLDER."""
    device: str = "auto"
    """What a trained model and its encoders run on: cpu, cuda, cuda:1, or auto."""
    shares: bool = False
    """For a trained model of several modalities: columns share_visual, share_audio, ... (and a lane in the report): how
    far the answer moves without each, as shares, second by second. One more run of the model for each."""
    windows: str | None = None
    """For a causal trained model: SIZE:STRIDE in frames. It reads overlapping windows, joined by fading, instead of
    carrying its state through the recording."""
    smooth: str = "none"
    """Smooth each trace: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what was kept
    beside the trained model. Extra columns are left as they are."""
    analysis: Annotated[AnalysisConfig, flat(ANALYSIS)] = field(default_factory=AnalysisConfig)
    speech: Annotated[bool, under(ANALYSIS)] = True
    """Look for words. --no-speech leaves them out."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Common):
    """One offline HTML page from traces: video beside its time lines, circumplex, words, quality flags."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files (.csv, .parquet, .json), or folders of them."""
    out: Path = Path("report.html")
    """The page to write."""
    video: Path | None = None
    """The recording, where there is one and its own path no longer holds."""
    media: Literal["auto", "inside", "beside", "none"] = "auto"
    """The recording inside the page, as a file beside it, or left out. auto: inside while it is small and browsers play
    it, else a small preview, else beside."""


@dataclass(frozen=True, kw_only=True)
class OverlayOptions(Common):
    """The video with its trace and face box drawn on it; the sound is kept."""

    traces: Files = field(default=(), kw_only=False)
    """Traces of one recording, one a person."""
    video: Path | None = None
    """The recording; by default the path the trace was made from."""
    out: Path = Path("overlay.mp4")
    """The video to write."""
    panel: Literal["below", "over"] = "below"
    """Lines and circumplex below the picture, or over its lower part."""
    history_s: Positive = 8.0
    """How much of the past the lines show, seconds."""
    crf: Annotated[int, Interval(ge=0, le=51)] = 20
    """Quality of the video: 18 (near lossless) to 30 (small)."""


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
    voice follow arousal. Labels remember what was shown before. The same seed makes the same bytes.
    """

    out: Path = field(kw_only=False)
    """A new folder. It is there when everything in it is done, and not before."""
    made: Annotated[SynthConfig, flat(MADE)] = field(default_factory=SynthConfig)
    jobs: Annotated[int, under(MADE)] = 0
    """Processes; 0: one a core. The result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Common):
    """Make a data set of anyone's tables, or of the Aff-Wild2 layout: a manifest, and a table of all that was odd.

    Tables: features and labels (CSV, TSV, Parquet, NPZ), each on its own clock; several raters, with their agreement
    and one gold standard; words. Described by a JSON file (docs/data.md has the fields), or in the usual case by flags:
    `affectrace import study --features physiology=signals/{id}.csv --labels ratings/{id}.csv --time seconds`.
    """

    data: Annotated[Path, under(INPUTS)] = field(kw_only=False)
    """A description (JSON), a folder of tables (with --features or --labels), or the folder of an Aff-Wild2 tree."""
    out: Path = Path("dataset")
    """Folder for manifest.json and problems.csv; of tables also features, labels, raters and transcripts."""
    tables: Path | None = None
    """Folder the paths of a description start from; by default the folder it lies in."""
    features: Annotated[tuple[str, ...], under(INPUTS)] = ()
    """Without a description: MODALITY=PATH of each table, {id} in the place of the recording's id. Its columns of
    numbers are features, but for labels, times and counts of rows; what is left out is said."""
    labels: str | None = None
    """Without a description: path of tables with columns valence and arousal."""
    time: str | None = None
    """Column of times in seconds, in all these tables."""
    rate_hz: FrameRate | None = None
    """Rows a second of the features, where they have no times (25, 30000/1001)."""
    label_rate_hz: FrameRate | None = None
    """The same of the labels; by default the features'."""
    low: float = -1.0
    """Lower end of the labels' scale; it becomes -1."""
    high: float = 1.0
    """Upper end; it becomes 1."""
    folds: Annotated[int, under(OUTPUT)] = 0
    """Put training and validation recordings into so many folds; what shares a video or a subject stays together."""


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Common):
    """Features of recordings, one file a recording and extractor. Stop it and start it again: nothing is done twice.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Faces: fer,
    mesh-geometry. Sound: hubert-base, wav2vec2-base, whisper-tiny.en (-layerK after one of the three: a hidden
    state other than the last), prosody. Words: roberta-base, minilm-l6.
    NAME=FOLDER or NAME=user/model@COMMIT brings other weights; A|B tries A, then B; visual, audio, text are such lists.
    """

    data: Files = field(default=(), kw_only=False)
    """A data set (manifest.json, its folder, or the Aff-Wild2 layout), or videos, sound files and folders of them."""
    features: Annotated[str, under(INPUTS)] = "visual,audio,text"
    """Names, with commas between them."""
    out: Path = Path("features")
    """Folder for feature files: OUT/NAME/RECORDING.safetensors."""
    extraction: Annotated[ExtractConfig, flat(EXTRACTION)] = field(default_factory=ExtractConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Common):
    """Tune an encoder on labelled recordings, or go on with MAE's pre-training on unlabelled faces.

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
    """Go on with the run in OUT."""
    tuning: Annotated[FinetuneConfig, flat(TRAINING)] = field(default_factory=FinetuneConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainingSetup, Common):
    """Shared by `train` and `crossval`."""

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
    3e-4, weight decay 1e-2, dropout .3; folds 1-5 windows 300/200, lr 3e-5, weight decay 1e-3, dropout .2); what is
    given on the command line wins. The defaults shown below are those without a recipe.
    OUT gets best/ and last/ (checkpoints; best/README.md is the model card), log.jsonl, steps.csv, validations.csv,
    tensorboard/ where it is installed, run.json and options.json.
    """

    fold: int = 0
    """0: the official split; k: fold k is held out (of the manifest's, or of the five it is divided into)."""
    resume: bool = False
    """Go on with the run in OUT."""


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(TrainingOptions):
    """Train and score a model on every fold; stopped and started again, it goes on inside the fold it was in.

    OUT gets fold_K/ (as `affectrace train` writes it, and held_out/: the traces of the recordings held out) and
    crossval.json: CCC of every fold with bootstrap intervals, their mean, all held-out recordings pooled. For mamba-va
    on Aff-Wild2 Table 1 of its paper is shown beside it. Settings follow the model, each fold and --recipe, as in
    `affectrace train`.

    With --finetune the encoder is tuned, its features are extracted and the model is trained in every fold, without the
    held-out recordings: fold_K/ also gets encoder/ and features/. Features of an encoder that was tuned on held-out
    recordings are refused.
    """

    out: Path = Path("crossval")
    """Folder for the folds."""
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Which: 0 is the official split, 1 to 5 are cross-validation."""
    choose: Literal["inner", "last", "scored"] = "inner"
    """Which checkpoint is scored. inner: the best on a fifth of the training recordings, which is kept apart. last: the
    last one, trained on all of them. scored: the best on the recordings that are scored, as the authors have it on the
    official split: only with --folds 0 and --recipe authors, and marked."""
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
class ModelOptions(Common):
    """Shared by what runs trained models on a data set's features, or reads traces."""

    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote, for models."""
    accept_features: bool = False
    """Use features made by a different extractor than in training; the result says so."""
    device: str = "cpu"
    """Where models run: cpu, cuda, ..."""
    smooth: str = "none"
    """Smooth predictions first: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what
    was kept beside the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ModelOptions):
    """Shared by what takes one model, several as one, or traces."""

    predictions: Files = field(default=(), kw_only=False)
    """A checkpoint folder (several with --ensemble), or trace files and folders of them."""
    ensemble: bool = False
    """Average the predictions of several checkpoints (folds, seeds, models)."""
    weights: tuple[float, ...] = ()
    """What each checkpoint of an ensemble counts; by default all the same."""


@dataclass(frozen=True, kw_only=True)
class ScoredOptions(ModelOptions):
    """Shared by what scores."""

    split: Literal["train", "validation", "test"] = "validation"
    """Which recordings (with --fold 0)."""
    fold: int = 0
    """k > 0: the recordings held out in fold k instead of a split."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""
    seed: int = 0
    """Of the bootstrap."""
    out: Path | None = None
    """JSON file for everything."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ScoredOptions, EnsembleOptions):
    """Score a trained model, or traces, against a data set's labels."""

    features: tuple[str, ...] = ()
    """STREAM=EXTRACTOR where it is not what the checkpoint names: the features of the store that it reads."""
    windows: str | None = None
    """For causal checkpoints: SIZE:STRIDE in frames. They read overlapping windows, joined by fading, instead of
    carrying their state through the recording."""
    by: str | None = None
    """Column of the manifest (or subject, fold): scores of each group, and its difference to the others."""
    smoothing_curve: bool = False
    """Score again after smoothing with several methods and windows."""
    keep_smoothing: bool = False
    """Keep the best of --smoothing-curve beside the checkpoint, for --smooth auto. For validation data only."""
    drop: tuple[str, ...] = ()
    """Modalities to mask out of a checkpoint's input (audio, text, ...): every frame of them is not valid."""
    modalities: bool = False
    """Score a checkpoint with each modality alone, each pair, ..., all (the others masked out), with intervals."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ScoredOptions):
    """Several models on the frames all of them predict, with paired intervals."""

    models: Files = field(default=(), kw_only=False)
    """Checkpoint folders or folders of traces, each as PATH or NAME=PATH; NAME=PATH,PATH,... averages checkpoints."""
    published: bool = True
    """On Aff-Wild2's own validation set: also show the published figures of it (tables in the Mamba-VA paper)."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(EnsembleOptions):
    """The ABAW submission file from the organisers' sample, checked; or, with --check, the check alone."""

    sample: Path | None = None
    """The organisers' sample: which frames are asked for. By default the one that the data set holds, or
    CVPR_8th_ABAW_VA_test_set_sample.txt."""
    out: Path = Path("predictions.txt")
    """File to write."""
    check: Path | None = None
    """Check this file and write none."""


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(Common):
    """Where a trained model's pathways look: which words, which sounds, at which frames; and what each modality does.

    OUT/RECORDING/ gets attention.safetensors (weights with the times of queries and keys, and the words), looked_at.csv
    (every word and moment, how many times as much as evenly), trace.csv (share_visual, share_audio, ... second by
    second) and report.html. Attention is not explanation: shares say what the answer hangs on, by leaving it out.
    """

    model: Files = field(default=(), kw_only=False)
    """A checkpoint folder of a model with attention between modalities (maven)."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    recording: tuple[str, ...] = ()
    """Ids of recordings of the data set."""
    out: Path = Path("attention")
    """Folder to write to."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote."""
    accept_features: bool = False
    """Use features made by a different extractor than in training; the result says so."""
    start_s: float | None = None
    """Only windows that reach past this time, in seconds."""
    end_s: float | None = None
    """Only windows that begin before this time, in seconds."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, ..."""
    report: bool = True
    """Write report.html."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Common):
    """The authors' checkpoint as a folder of ours, which predict, evaluate, compare and export take.

    The file is read as tensors only: nothing in it is executed. Every tensor is used, or named with the reason.
    """

    checkpoint: Path = field(default=Path(), kw_only=False)
    """Their .pt, .pth or .safetensors file."""
    source: Annotated[Literal["charon", "maven"] | None, Parameter(name="--from", group=INPUTS)] = None
    """Whose: charon (Mamba-VA, FreedomPuppy77/Charon) or maven (Vrushank-Ahire/MAVEN_8th_ABAW, both its networks)."""
    out: Path = Path("converted")
    """Folder to write."""
    standardise: bool = False
    """maven: each input by its own mean and deviation before the network, as the authors' loader does."""


@dataclass(frozen=True, kw_only=True)
class PushOptions(Common):
    """A trained model on the Hugging Face Hub: the checkpoint's files and its card, nothing else of the folder.

    Afterwards `affectrace predict --model USER/MODEL@COMMIT` takes it anywhere. Needs an account: `hf auth login`.
    """

    folder: Path = field(default=Path("run/best"), kw_only=False)
    """What `affectrace train` or `convert` wrote."""
    repo_id: str = field(default="", kw_only=False)
    """user/model; made where it is not there."""
    public: bool = False
    """Anyone may see a repository that is made now; otherwise its owner alone."""
    message: str = ""
    """Of the commit; by default the model's name and hash."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Common):
    """Traces in another format, or a trained model as ONNX.

    A causal model becomes a step: features and state in, valence, arousal and new state out. Another becomes a window
    of frames. The file is run beside torch before it is written (difference at most 1e-5).
    """

    inputs: Files = field(default=(), kw_only=False)
    """Trace files and folders of them; with --to onnx one checkpoint folder."""
    to: Annotated[Literal["csv", "parquet", "json", "onnx"], Parameter(alias="--format", group=OUTPUT)] = "csv"
    """Format to write."""
    out: Path = Path("affectrace_out")
    """Folder to write to; with --to onnx this may be the file, NAME.onnx."""
    frames: int | None = None
    """onnx: frames of a call; by default 1 for a causal model, 256 for another."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Common):
    """Pretrained weights, their licences and where they are."""

    action: Literal["list", "fetch", "verify"] = field(default="list", kw_only=False)
    """list: all sources with licence and state; fetch: download; verify: hash every file again."""
    names: Files = field(default=(), kw_only=False)
    """Which ones; by default those that `predict` needs."""
    all: bool = False
    """Every source, also optional ones."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Common):
    """What is installed, which weights are found, what this machine can do; with --data, what is in a data set.

    Exit code 1: something is missing, or something in the data set needs attention (leaks between sets, missing or
    broken files). Oddities of a data set that are handled are listed and leave it 0.
    """

    data: Path | None = None
    """A data set (Aff-Wild2 layout, manifest.json or its folder): counts, one table of all problems, leaks between
    sets, agreement of raters. Or a folder of recordings: can they be opened."""

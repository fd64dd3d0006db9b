"""Training and validation recordings as items of what an encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectrace.errors import InputError
from affectrace.features.text import Tokens
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.crops import CropConfig, cut_crops
from affectrace.finetune.data import Items, Note
from affectrace.finetune.encoder import Encoder
from affectrace.finetune.face_crops import Pictures, crop_folder
from affectrace.finetune.labels import Labels
from affectrace.finetune.sound import Sound, sound_chunks
from affectrace.finetune.words import Words, word_windows
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording


def open_items(
    encoder: Encoder,
    recordings: Sequence[Recording],
    labels: Labels | None,
    config: FinetuneConfig,
    store: Path,
    *,
    what: str,
    note: Note = lambda text: None,
    progress: Progress = silent,
) -> Items:
    """The items of some recordings.

    Args:
        labels: None: all pictures, labelled or not. store: folder for crops and sound that are decoded once.
        what: "training" or "validation", for messages. note: called with what a person should know.

    Raises:
        InputError: not one of the recordings has what the encoder reads, with a label.
    """
    ids: list[str] = []
    parts: list[Any] = []
    lacking: list[str] = []
    for i, recording in enumerate(recordings):
        progress(ProgressEvent(f"{what} set", i, len(recordings), "recordings", ""))
        part = _part(encoder, recording, labels, config, store, note, _about(recording, progress))
        if part is None:
            lacking.append(recording.id)
        else:
            ids.append(recording.id)
            parts.append(part)
    progress(ProgressEvent(f"{what} set", len(recordings), len(recordings), "recordings", ""))
    medium = {"visual": "pictures", "audio": "sound", "text": "a transcript"}[encoder.modality]
    if lacking:
        note(f"{len(lacking)} {what} recordings have no {medium.removeprefix('a ')} (first: {lacking[0]}): left out")
    items = _items(encoder, ids, parts, config)
    if not len(items):
        if lacking and not ids:
            raise InputError(f"none of the {what} recordings has {medium}, which '{encoder.name}' reads")
        lack = "hold no picture" if labels is None else "hold no labelled row"
        raise InputError(f"the {what} recordings {lack}", hint="check the split, the labels, and --items.every")
    return items


def _about(recording: Recording, progress: Progress) -> Progress:
    return lambda event: progress(replace(event, item=event.item or recording.id))


def _part(
    encoder: Encoder,
    recording: Recording,
    labels: Labels | None,
    config: FinetuneConfig,
    store: Path,
    note: Note,
    progress: Progress,
) -> Any:
    if encoder.modality == "visual":
        path, cut = recording.crops, False
        if path is None and recording.video is not None:
            if labels is None and recording.video.is_dir():
                path = recording.video  # unlabelled pictures in a folder are crops
            else:
                c = CropConfig(
                    encoder.preprocessing.side, encoder.extractor.margin, config.items.every, config.items.fps
                )
                try:
                    path, cut = cut_crops(recording, store, c, note=note, progress=progress), True
                except InputError as error:  # one video of many; what was cut of the others is kept
                    note(f"{recording.id}: {error.one_line()}: left out")
                    return None
        return None if path is None else crop_folder(recording, labels, path, config, cut)
    assert labels is not None
    if encoder.modality == "audio":
        return sound_chunks(recording, labels, encoder.module, config.items.chunk_s, store, progress)
    if recording.transcript is None:
        return None
    tokens: Tokens = encoder.extractor.encoder.tokens
    return word_windows(recording, labels, tokens, config.items.window_tokens)


def _items(encoder: Encoder, ids: Sequence[str], parts: Sequence[Any], config: FinetuneConfig) -> Items:
    if encoder.modality == "visual":
        return Pictures(ids, parts, encoder.preprocessing, config.augment.of(config.objective))
    if encoder.modality == "audio":
        return Sound(ids, [path for path, _ in parts], [found for _, found in parts])
    return Words(ids, parts, encoder.extractor.encoder.tokens)

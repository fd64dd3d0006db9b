"""Tuning an encoder on labelled recordings, or going on with MAE's pre-training: what `affectrace finetune` runs."""

from affectrace.finetune.config import FinetuneConfig as FinetuneConfig
from affectrace.finetune.tuner import Finetuned as Finetuned
from affectrace.finetune.tuner import finetune as finetune

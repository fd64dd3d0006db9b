"""Training of temporal models: `train` for one run, `crossval.cross_validate` for every fold."""

from affectrace.train.config import TrainConfig as TrainConfig
from affectrace.train.trainer import Trained as Trained
from affectrace.train.trainer import train as train

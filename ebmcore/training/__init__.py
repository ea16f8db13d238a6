from ebmcore.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from ebmcore.training.fit import FitResult, fit
from ebmcore.training.replay_buffer import ReplayBuffer

__all__ = ["Checkpoint", "CheckpointError", "FitResult", "ReplayBuffer", "fit", "load_checkpoint", "save_checkpoint"]

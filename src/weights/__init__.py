"""InceptionV4 weights of other programs to this one and back: TF-slim (TensorFlow checkpoints), timm (safetensors,
`.pth`), MindCV (`.ckpt`). `python -m src.weights --help` is the tool; none of these programs need be installed."""

from src.weights.convert import convert, main_file, read
from src.weights.names import from_tf_slim, tf_slim_name, to_tf_slim

__all__ = ['convert', 'from_tf_slim', 'main_file', 'read', 'tf_slim_name', 'to_tf_slim']

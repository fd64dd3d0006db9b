"""Models: aligned features in, valence and arousal out. Models do not import each other."""

"""Models: aligned features in, valence and arousal per frame out."""

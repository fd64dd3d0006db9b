"""Models: from aligned features to valence and arousal. Models do not import each other."""

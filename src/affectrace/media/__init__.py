"""Media files as frames, audio, words and faces, each with its own clock."""

"""Media files as frames, sound, words and faces, each with its own clock."""

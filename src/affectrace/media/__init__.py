"""From files to frames, sound, words and faces, each with its own clock."""

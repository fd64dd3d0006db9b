"""Media: video, images, sound, speech, transcripts and faces, each on its own exact clock."""

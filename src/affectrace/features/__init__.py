"""Feature extraction: from media to feature tables, each on its own clock."""

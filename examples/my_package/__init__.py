"""What a package of one's own may add to livetrain: one file per kind, and no file of livetrain's changes."""

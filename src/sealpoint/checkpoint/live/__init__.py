"""Process trees: dump, restore, watch, migrate; CRIU's images by stream and by mount."""

"""From objects to a sealed file: one object that commits or leaves nothing behind."""

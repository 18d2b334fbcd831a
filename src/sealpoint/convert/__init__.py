"""New files from existing ones: between formats, and with some objects replaced.  `inspect` writes none."""

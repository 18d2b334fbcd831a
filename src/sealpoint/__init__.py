"""sealpoint: end-to-end encryption for CRIU checkpoints.

The packages are layers; each imports only what is below it (see [tool.importlinter] in pyproject.toml).
"""

__version__ = "0.1.0"

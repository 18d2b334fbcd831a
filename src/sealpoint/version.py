"""Which sealpoint this is.  Apart from the face of the package, so that modules below it can say so."""

from __future__ import annotations

__version__ = "0.1.0"

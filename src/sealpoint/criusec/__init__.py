"""The interop codec: dumps encrypted in place by a CRIU with the patch series of pull request 2297 ("CRIUsec").

docs/criusec.md describes the format and what it cannot detect.  Nothing else in sealpoint uses its primitives.
"""

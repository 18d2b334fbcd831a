"""Benchmarks against stock CRIU and what people pipe it into: `make bench`, or `python -m bench --help`.

Figures depend on the machine, so no test checks a time; what counts are ratios between variants that were measured in
the same rounds of the same run.
"""

"""Benchmarks of adjoint, alone or against another library: `python -m bench --help` in the repository."""

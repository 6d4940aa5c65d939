"""Proofs that channel surgery is exact on any graph: one module each, run by ``python -m bench.surgery``."""

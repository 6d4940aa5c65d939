"""Sensitivity curves as a drawing that stands alone."""

from __future__ import annotations

from onnxprune.report import svg
from onnxprune.report.schema import AnalysisReport


def sensitivity_svg(report: AnalysisReport) -> str:
    """An SVG file: how far the output moves as each group alone loses channels."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{svg.sensitivity_curves(report.groups)}\n'

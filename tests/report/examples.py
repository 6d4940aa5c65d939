"""Reports to test on, with names that try to break out of whatever shows them."""

from __future__ import annotations

from onnxprune.report.schema import (
    ClassEdge,
    ClassMerge,
    ClassStructure,
    CompressionReport,
    Fidelity,
    Figures,
    GroupChange,
    ModelFiles,
    SkippedGroup,
)

HOSTILE = '<script>alert("x")</script>&\'"{{7*7}}'
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def compression(name: str = "/layer1/layer1.0/conv1/Conv") -> CompressionReport:
    return CompressionReport(
        model=ModelFiles(f"{name}.onnx", "small.onnx", {"input": "ab" * 32, "output": "cd" * 32}),
        before=Figures(125_490_000, 853_018, 3_470_000, 4.2, {"top1": 93.39, "top5": 99.8}),
        after=Figures(
            62_700_000, 431_000, 1_780_000, 2.9, {"top1": 91.62, "top5": 99.7}, Fidelity(94.1, 0.0713)
        ),
        method={"name": "stlp-ib", "data_term": "contribution", "budgets": ["macs 50%"], "lambda": 0.0123456},
        data={"source": name, "samples": 1000, "preprocess": {"mean": [0.485, 0.456], "scale": None}},
        groups=(
            GroupChange(name, 16, 7, (name, "BatchNormalization_3")),
            *(GroupChange(f"/layer{i}/conv", 2 ** (4 + i), 9 * i + 3, ("a", "b")) for i in range(1, 4)),
        ),
        skipped=(SkippedGroup("/fc/Gemm", "graph output 'logits'", 10), SkippedGroup("x", name)),
        timings_s={"select": 1.25, "recover": 12.5},
        warnings=(f"mind {name}",),
        classes=ClassStructure(
            names=(name, *CLASSES[1:]),
            merges=(
                ClassMerge((3, 5), 0.12),
                ClassMerge((1, 9), 0.2),
                ClassMerge((0, 8), 0.3),
                ClassMerge((4, 7), 0.42),
                ClassMerge((2, 6), 0.5),
                ClassMerge((10, 13), 0.6),
                ClassMerge((15, 14), 0.7),
                ClassMerge((11, 12), 0.8),
                ClassMerge((16, 17), 1.0),
            ),
            edges=(ClassEdge(3, 5, 0.9), ClassEdge(1, 9, 0.7), ClassEdge(0, 6, -0.55)),
        ),
    )

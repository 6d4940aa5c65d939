"""The command line of onnxprune: one file a command.

Only modules that import quickly are imported here and at the top of the commands; torch, onnx and
onnxruntime come in when a command really runs, so that ``--help`` is instant.
"""

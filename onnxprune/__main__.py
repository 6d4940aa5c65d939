"""``python -m onnxprune`` is the command line."""

from onnxprune_cli.main import main

if __name__ == "__main__":
    main()

"""The version of the package."""

from importlib import metadata


def package_version() -> str:
    """The version of the installed package, or ``0+unknown`` where it runs without being installed."""
    try:
        return metadata.version("onnxprune")
    except metadata.PackageNotFoundError:
        return "0+unknown"

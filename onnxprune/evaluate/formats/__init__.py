"""The forms that data comes in, one module each; every one gives a `Source`."""

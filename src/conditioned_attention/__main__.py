"""Runs the command line as ``python -m conditioned_attention``, for launchers that start modules."""

from conditioned_attention.cli import main

if __name__ == "__main__":
    main()

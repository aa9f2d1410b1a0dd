"""Set up here as well as in conftest.py: some of these files run without pytest."""

from conditioned_attention._torchvision import make_importable

make_importable()

"""Where the heads and the projections of torchvision's attention classes are."""

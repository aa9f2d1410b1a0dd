"""Where the heads and the projections of timm's attention classes are."""

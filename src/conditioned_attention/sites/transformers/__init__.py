"""Where the heads and the projections of Hugging Face's attention classes are."""

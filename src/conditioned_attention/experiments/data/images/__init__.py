"""Pictures: what is on disk or in a package -> images and labels."""

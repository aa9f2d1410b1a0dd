"""What runs have found, shown: in the terminal, as pictures, as a page."""

"""Shows the results of runs: in the terminal, as pictures, and as an HTML page."""

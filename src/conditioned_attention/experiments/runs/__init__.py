"""Many runs: which are missing, who makes them, what came of them."""

"""Many runs: finds the missing ones, makes them, and collects their results."""

"""What a run will take, and what a variant costs, before anything is trained."""

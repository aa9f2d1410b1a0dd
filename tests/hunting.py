"""What the hunts have in common: one random sequence after another, and what went wrong in which."""

import sys
import time
import traceback
from collections import Counter
from pathlib import Path


def hunt(follow):
    """For ``python -m … SECONDS [SEED]``; ``follow(seed)`` gives outcomes, or raises with the sequence in a note."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    end, first, found, outcomes = time.monotonic() + seconds, seed, {}, Counter()
    while time.monotonic() < end:
        try:
            outcomes.update(follow(seed))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} ({Path(place.filename).name}:{place.lineno}): {str(error)[:160]}"
            found.setdefault(kind, []).append(error.__notes__[0])
        seed += 1
    print(f"{seed - first} sequences, {sum(map(len, found.values()))} wrong; operations: {dict(outcomes)}")
    for kind, notes in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(notes)} × {kind}", *notes[:3], sep="\n    ")

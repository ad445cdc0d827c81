"""Cases that are enumerated: all of them or some, and a table of what came of them."""

import os

EXHAUSTIVE = os.environ.get("FERRY_EXHAUSTIVE") == "1"


class Table:
    """Cases and what came of them; those in a row with the same outcome become one line."""

    def __init__(self):
        self.lines = []

    def add(self, step, killed, status, where, otherwise="not reached"):
        """`status` is that of xm, or None where it ended with its host; `otherwise` is why nobody was killed."""
        said = "is gone" if status is None else "fails" if status else "succeeds"
        outcome = ("" if killed else f"{otherwise}, ") + f"xm {said}, guest: {where}"
        if self.lines and self.lines[-1][2] == outcome:
            self.lines[-1][1:2] = [step]
            self.lines[-1][3] += 1
        else:
            self.lines.append([step, step, outcome, 1])

    def print(self, title, capsys):
        with capsys.disabled():
            print(f"\n{title}")
            for first, last, outcome, count in self.lines:
                print(f"  {first + ('' if first == last else ' … ' + last):58} {count:4} × {outcome}")

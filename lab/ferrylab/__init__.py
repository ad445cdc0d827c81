"""The lab: emulated hosts for Ferry, on any machine, unprivileged.

    from ferrylab import Lab
    with Lab(hosts=["host1", "host2"]) as lab:
        print(lab.host1.run("xm list").stdout)

See lab/README.md.
"""

from .agent import CommandFailed, LabError, TimedOut
from .lab import Lab, attach

__all__ = ["CommandFailed", "Lab", "LabError", "TimedOut", "attach"]

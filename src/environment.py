"""What this machine has of Ascend's."""
import glob
import re

NPUS = "/dev/davinci[0-9]*"


def npus():
    """Physical numbers of the NPUs that this machine or container may use, ascending."""
    return sorted(int(re.search(r"\d+$", path)[0]) for path in glob.glob(NPUS))

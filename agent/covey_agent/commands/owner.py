"""Root at the command line works as the owner of the state directory, as the service does: a file that root leaves there could not be
read by the agent, and what lies there is not trusted with root's rights."""

import os
import pwd
from pathlib import Path


def become_owner(state_dir: Path) -> None:
    """Give up root's rights for good, if the state directory is somebody else's. Otherwise nothing changes."""
    if os.geteuid() != 0:
        return
    try:
        owner = state_dir.stat()
    except OSError:
        return
    if owner.st_uid == 0:
        return
    try:
        groups = os.getgrouplist(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    except KeyError:  # a user of another system, such as in a mounted image
        groups = [owner.st_gid]
    os.setgroups(groups)
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)

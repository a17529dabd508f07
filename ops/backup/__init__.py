"""A copy of a whole hotel in a folder, and a hotel from such a copy: `gotohotel backup` and `gotohotel restore`.

contents   what a backup's folder holds
copying    makes one while the hotel runs
restoring  makes a hotel of it, and names what came after it
"""

from ops.backup.copying import back_up
from ops.backup.restoring import LATER, restore

__all__ = ["LATER", "back_up", "restore"]

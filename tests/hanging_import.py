"""A module for a forkserver to import, which never ends."""

import time

time.sleep(1000)

"""To be imported in a process that shall end without a word."""

import os

os._exit(7)

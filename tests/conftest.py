"""For all tests."""

from __future__ import annotations

import signal

# Where the tests run in the background of a script, SIGINT is ignored, and every program that they start would inherit
# that: the tests of Ctrl-C then wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

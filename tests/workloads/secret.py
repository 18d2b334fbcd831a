#!/usr/bin/env python3
"""Workload of the demonstration: holds a password in memory and counts.

printf 'password %s\\n' "$PASSWORD" | secret.py --dir DIR --daemon     # prints the pid
workload_ask.py DIR                                                    # ok COUNTER ...
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from workload_common import Workload, digest


def main() -> None:
    workload = Workload()
    password = workload.secret("password")
    workload.watch("password", lambda: digest(password))
    workload.serve()


main()

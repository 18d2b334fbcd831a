"""Runs in the Python of a CRIU prefix: reads {"name": base64 of an image}, prints what pycriu makes of each.

{"name": {"plain": ..., "pretty": ..., "nopl": ...}, ...}; see test_inspect_crit.py.
"""

import base64
import io
import json
import sys

sys.path.append(sys.argv[1])

import pycriu

FORMS = {"plain": (), "pretty": (True,), "nopl": (True, True)}

found = {}
for name, data in json.load(sys.stdin).items():
    found[name] = {}
    for form, options in FORMS.items():
        image = io.BytesIO(base64.b64decode(data))
        try:
            found[name][form] = json.dumps(pycriu.images.load(image, *options))
        except Exception as error:
            found[name][f"error of {form}"] = repr(error)
json.dump(found, sys.stdout)
